package cdi

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Edits are what a container gets with a device.
type Edits struct {
	Env    []string `yaml:"env"`
	Nodes  []Node   `yaml:"deviceNodes"`
	Mounts []Mount  `yaml:"mounts"`
	Hooks  []Hook   `yaml:"hooks"`
	Groups []uint32 `yaml:"additionalGids"`

	// What kiln cannot do; a device that needs it is not given.
	NetDevices []any `yaml:"netDevices"`
	IntelRdt   any   `yaml:"intelRdt"`
}

// Node is a device node. What it does not say is that of the host's node.
type Node struct {
	Path        string  `yaml:"path"`     // in the container
	HostPath    string  `yaml:"hostPath"` // empty is Path
	Type        string  `yaml:"type"`     // "b", "c" or "u"; empty is the host's
	Major       int64   `yaml:"major"`
	Minor       int64   `yaml:"minor"`
	Mode        *uint32 `yaml:"fileMode"`
	Permissions string  `yaml:"permissions"` // of "rwm"; empty is all
	UID         *uint32 `yaml:"uid"`
	GID         *uint32 `yaml:"gid"`
}

// Mount is a path of the host that a container sees.
type Mount struct {
	HostPath      string   `yaml:"hostPath"`
	ContainerPath string   `yaml:"containerPath"`
	Type          string   `yaml:"type"`
	Options       []string `yaml:"options"`
}

// Hook is a program of the host that an OCI runtime runs while it makes a container.
type Hook struct {
	Name    string   `yaml:"hookName"`
	Path    string   `yaml:"path"`
	Args    []string `yaml:"args"`
	Env     []string `yaml:"env"`
	Timeout *int     `yaml:"timeout"`
}

// hookNames are the moments at which hooks run.
var hookNames = map[string]bool{
	"prestart": true, "createRuntime": true, "createContainer": true, "startContainer": true, "poststart": true, "poststop": true,
}

// check finds what makes no sense.
func (e *Edits) check() error {
	for _, v := range e.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" {
			return fmt.Errorf("%q is no variable", v)
		}
	}
	for _, n := range e.Nodes {
		switch {
		case !path.IsAbs(n.Path):
			return fmt.Errorf("a device node has the path %q", n.Path)
		case n.Type != "" && !strings.Contains("bcup", n.Type) || len(n.Type) > 1:
			return fmt.Errorf("the device node %s is of type %q", n.Path, n.Type)
		case strings.Trim(n.Permissions, "rwm") != "":
			return fmt.Errorf("the device node %s has the permissions %q", n.Path, n.Permissions)
		}
	}
	for _, m := range e.Mounts {
		if m.HostPath == "" || m.ContainerPath == "" {
			return errors.New("a mount names no path")
		}
	}
	for _, h := range e.Hooks {
		if !hookNames[h.Name] || h.Path == "" {
			return fmt.Errorf("the hook %q of %q is none", h.Path, h.Name)
		}
	}
	return nil
}

// Unsupported names what the edits ask for and kiln does not do, empty if nothing.
func (e *Edits) Unsupported() string {
	switch {
	case len(e.NetDevices) > 0:
		return "a network device"
	case e.IntelRdt != nil:
		return "Intel RDT"
	}
	for _, n := range e.Nodes {
		if n.Type == "p" {
			return "a named pipe as a device node"
		}
	}
	for _, m := range e.Mounts {
		if m.Type != "" && m.Type != "bind" && m.Type != "none" {
			return "a mount of type " + m.Type
		}
	}
	return ""
}
