// Package cdi reads the specifications of the Container Device Interface: files in
// which the makers of devices say what a container needs to use one.
//
// A specification is of one kind, "vendor.com/class", and lists devices by name;
// "vendor.com/class=name" is a device's full name. Each device has edits: device
// nodes, mounts, variables, groups and hooks that a container gets with it. The
// specification's own edits go to every container that gets any device of it.
//
// Specifications lie in folders, as JSON or YAML. Where two files have a device of
// one name, the one of the later folder counts; two in the same folder are a
// conflict, and then there is no such device.
//
//	specs, err := cdi.Read(cdi.DefaultDirs...)
//	devices := specs.Find("vendor.com/class=name")
package cdi

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// DefaultDirs are the folders that container engines agree on, and BuildKit's own.
var DefaultDirs = []string{"/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"}

// BuildKit gives meaning to these annotations of a specification or device.
const (
	classAnnotation = "org.mobyproject.buildkit.device.class"
	allowAnnotation = "org.mobyproject.buildkit.device.autoallow"
)

// maxFile bounds a specification. Those of machines with many cards and partitions
// come to some hundred kilobytes.
const maxFile = 8 << 20

// Device is one device, with all that a container needs for it.
type Device struct {
	Name string // in full: "vendor.com/class=name"
	// Class is a name that several devices may share, empty if this has none.
	Class string
	// Allowed says that builds may have it without being granted it.
	Allowed bool
	// Annotations are its own and those of its specification.
	Annotations map[string]string
	// Edits are the device's own, and Common those of its specification.
	Edits, Common Edits
	// File is where it is specified.
	File string
}

// Kind is the part of the name before the "=".
func (d *Device) Kind() string {
	kind, _, _ := strings.Cut(d.Name, "=")
	return kind
}

// Specs are the devices of a machine. They do not change, and are safe for
// concurrent use.
type Specs struct {
	devices map[string]*Device
	order   []string // sorted
	broken  []error
}

// specification is a file.
type specification struct {
	Version     string            `yaml:"cdiVersion"`
	Kind        string            `yaml:"kind"`
	Annotations map[string]string `yaml:"annotations"`
	Edits       Edits             `yaml:"containerEdits"`
	Devices     []struct {
		Name        string            `yaml:"name"`
		Annotations map[string]string `yaml:"annotations"`
		Edits       Edits             `yaml:"containerEdits"`
	} `yaml:"devices"`
}

// Read reads the specifications of folders, those that count more coming later. A
// folder that is not there has none. A file that cannot be read or makes no sense
// has no devices, and Broken gives it.
func Read(dirs ...string) (*Specs, error) {
	s := &Specs{devices: map[string]*Device{}}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking for device specifications: %w", err)
		}
		here := map[string]*Device{}
		conflicts := map[string]bool{}
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); e.IsDir() || ext != ".json" && ext != ".yaml" {
				continue
			}
			file := filepath.Join(dir, e.Name())
			devices, err := readFile(file)
			if err != nil {
				s.broken = append(s.broken, fmt.Errorf("%s: %w", file, err))
				continue
			}
			for _, d := range devices {
				if other := here[d.Name]; other != nil {
					s.broken = append(s.broken, fmt.Errorf("device %s is in %s and in %s", d.Name, other.File, file))
					conflicts[d.Name] = true
				}
				here[d.Name] = d
			}
		}
		maps.DeleteFunc(here, func(name string, _ *Device) bool {
			if conflicts[name] {
				delete(s.devices, name)
			}
			return conflicts[name]
		})
		maps.Copy(s.devices, here)
	}
	s.order = slices.Sorted(maps.Keys(s.devices))
	return s, nil
}

// Broken gives what is wrong with files, nil if nothing is.
func (s *Specs) Broken() error { return errors.Join(s.broken...) }

func readFile(name string) ([]*Device, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	devices, err := parse(data)
	for _, d := range devices {
		d.File = name
	}
	return devices, err
}

// parse reads a specification. JSON is a part of YAML.
func parse(data []byte) ([]*Device, error) {
	var spec specification
	if err := yaml.Unmarshal(data, &spec); err != nil {
		return nil, err
	}
	vendor, class, ok := strings.Cut(spec.Kind, "/")
	if !ok || !isName(vendor, "") || !isName(class, "") {
		return nil, fmt.Errorf("its kind is %q, and should be like vendor.com/class", spec.Kind)
	}
	if spec.Version == "" {
		return nil, errors.New("it has no cdiVersion")
	}
	if err := spec.Edits.check(); err != nil {
		return nil, err
	}
	var out []*Device
	for _, d := range spec.Devices {
		if !isName(d.Name, ":") {
			return nil, fmt.Errorf("%q is not the name of a device", d.Name)
		}
		name := spec.Kind + "=" + d.Name
		if slices.ContainsFunc(out, func(o *Device) bool { return o.Name == name }) {
			return nil, fmt.Errorf("it has the device %q twice", d.Name)
		}
		if err := d.Edits.check(); err != nil {
			return nil, fmt.Errorf("device %q: %w", d.Name, err)
		}
		annotations := map[string]string{}
		maps.Copy(annotations, spec.Annotations)
		maps.Copy(annotations, d.Annotations)
		allowed, _ := strconv.ParseBool(annotations[allowAnnotation])
		out = append(out, &Device{
			Name: name, Edits: d.Edits, Common: spec.Edits, Annotations: annotations,
			Allowed: allowed, Class: annotations[classAnnotation],
		})
	}
	return out, nil
}

// isName reports whether s is a name: letters, digits, ".", "-", "_" and more.
func isName(s, more string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-"+more, r)
	}) < 0
}

// All gives the devices by name.
func (s *Specs) All() []*Device {
	out := make([]*Device, len(s.order))
	for i, name := range s.order {
		out[i] = s.devices[name]
	}
	return out
}

// Find gives the devices that a name stands for, none if there is no such device.
// The name is a device's in full, a kind for the first device of it, a kind with
// "=*" for all of them, or a class.
func (s *Specs) Find(name string) []*Device {
	kind, device, _ := strings.Cut(name, "=")
	if d := s.devices[name]; d != nil {
		return []*Device{d}
	}
	var out []*Device
	if strings.Contains(kind, "/") && (device == "" || device == "*") {
		for _, n := range s.order {
			if strings.HasPrefix(n, kind+"=") {
				out = append(out, s.devices[n])
			}
		}
		if device == "" && len(out) > 0 {
			out = out[:1]
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, n := range s.order {
		if d := s.devices[n]; d.Class != "" && d.Class == name {
			out = append(out, d)
		}
	}
	return out
}
