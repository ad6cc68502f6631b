package request

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Inputs are what a request comes down to: frontend attributes, and what the
// sources of the build that are on this machine name.
type Inputs struct {
	Attrs map[string]string
	// Folders are those that local sources name. The Dockerfile's own is called
	// "dockerfile", and missing where the request holds its text.
	Folders map[string]string
	// Layouts are the folders of image layouts, by the names of their stores.
	Layouts map[string]string
	// Files are those that the session sends whole, by their paths below uploadURL.
	Files map[string]string

	lookup Lookup
}

// Lookup gives the digest of the image called tag in a layout; an empty tag is the
// only image that there is.
type Lookup func(dir, tag string) (digest string, err error)

// IsRemote reports whether a context is something other than a folder.
func IsRemote(context string) bool {
	for _, scheme := range []string{"http://", "https://", "git://", "ssh://", "git@", "github.com/"} {
		if strings.HasPrefix(context, scheme) {
			return true
		}
	}
	return false
}

// Inputs works the request out.
func (r *Request) Inputs(lookup Lookup) (*Inputs, error) {
	in := &Inputs{Attrs: r.attrs(), Folders: map[string]string{}, Layouts: map[string]string{}, lookup: lookup}
	if err := in.setContexts(r); err != nil {
		return nil, err
	}
	maps.Copy(in.Attrs, r.Attrs)
	return in, nil
}

// FrontendAttrs gives the attributes of a request whose contexts are named
// elsewhere.
func (r *Request) FrontendAttrs() map[string]string {
	attrs := r.attrs()
	maps.Copy(attrs, r.Attrs)
	return attrs
}

// attrs gives what the fields come to that name nothing on this machine.
func (r *Request) attrs() map[string]string {
	attrs := map[string]string{}
	for k, v := range r.BuildArgs {
		attrs["build-arg:"+k] = v
	}
	for k, v := range r.Labels {
		attrs["label:"+k] = v
	}
	if r.Target != "" {
		attrs["target"] = r.Target
	}
	if len(r.Platforms) > 0 {
		attrs["platform"] = strings.Join(r.Platforms, ",")
	}
	if r.NoCache {
		attrs["no-cache"] = ""
	} else if len(r.NoCacheFilter) > 0 {
		attrs["no-cache"] = strings.Join(r.NoCacheFilter, ",")
	}
	if r.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	if r.Network != "" && r.Network != "default" {
		attrs["force-network-mode"] = r.Network
	}
	if len(r.AddHosts) > 0 {
		hosts := slices.Clone(r.AddHosts)
		for i, h := range hosts {
			if !strings.Contains(h, "=") {
				hosts[i] = strings.Replace(h, ":", "=", 1)
			}
		}
		attrs["add-hosts"] = strings.Join(hosts, ",")
	}
	if r.ShmSize > 0 {
		attrs["shm-size"] = strconv.FormatInt(r.ShmSize, 10)
	}
	if len(r.Ulimits) > 0 {
		attrs["ulimit"] = strings.Join(r.Ulimits, ",")
	}
	if r.CgroupParent != "" {
		attrs["cgroup-parent"] = r.CgroupParent
	}
	if r.Call != "" {
		attrs["requestid"] = "frontend." + r.Call
	}
	if r.Explain {
		attrs[AttrExplain] = "true"
	}
	if len(r.FailOnMiss) > 0 {
		list, _ := json.Marshal(r.FailOnMiss) // strings always can be
		attrs[AttrFailOnMiss] = string(list)
	}
	return attrs
}

// setContexts names the folders and addresses that the build reads.
func (in *Inputs) setContexts(r *Request) error {
	context := r.Context
	if context == "" {
		context = "."
	}
	remote := IsRemote(context)
	if remote {
		in.Attrs["context"] = context
	} else {
		var err error
		if remote, err = in.setMain(context); err != nil {
			return fmt.Errorf("the build context: %w", err)
		}
	}
	switch {
	case len(r.DockerfileText) > 0 && remote:
		in.Attrs["dockerfilekey"] = "dockerfile" // and not the context's
	case len(r.DockerfileText) > 0:
	case filepath.IsAbs(r.Dockerfile) && remote:
		in.Attrs["dockerfilekey"] = "dockerfile"
		if err := in.setDockerfile(r.Dockerfile); err != nil {
			return err
		}
	case r.Dockerfile != "" && remote:
		in.Attrs["filename"] = r.Dockerfile // in the context, as its name is given
	case r.Dockerfile != "":
		if err := in.setDockerfile(r.Dockerfile); err != nil {
			return err
		}
	case !remote:
		in.Folders["dockerfile"] = context
	}
	for _, name := range slices.Sorted(maps.Keys(r.Contexts)) {
		if err := in.setContext(name, r.Contexts[name]); err != nil {
			return fmt.Errorf("the build context %s: %w", name, err)
		}
	}
	return nil
}

// setMain names a folder, or a file that is sent whole: a tarball.
func (in *Inputs) setMain(context string) (sent bool, err error) {
	info, err := os.Stat(context)
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() {
		in.Folders["context"] = context
		return false, isFolder(context)
	}
	in.Attrs["context"], err = in.upload(context)
	return true, err
}

// uploadURL is what sources name that the session of the build sends, as BuildKit's
// clients have it.
const uploadURL = "http://buildkit-session"

// upload has the session send a file, and gives its URL. Its content names it, so that
// the same file is the same source the next time.
func (in *Inputs) upload(file string) (url string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	path := "/" + hex.EncodeToString(h.Sum(nil))
	in.Files = map[string]string{path: file}
	return uploadURL + path, nil
}

// setDockerfile names a Dockerfile of this machine.
func (in *Inputs) setDockerfile(path string) error {
	in.Folders["dockerfile"] = filepath.Dir(path)
	in.Attrs["filename"] = filepath.Base(path)
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("reading the Dockerfile: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("reading the Dockerfile: %s is no regular file; what comes through a pipe is named by --file -", path)
	}
	return nil
}

// setContext names one of the further contexts.
func (in *Inputs) setContext(name, value string) error {
	layout, ok := strings.CutPrefix(value, "oci-layout://")
	switch {
	case ok:
		return in.setLayout(name, layout)
	case strings.Contains(value, "://") || strings.HasPrefix(value, "target:") || IsRemote(value):
		in.Attrs["context:"+name] = value
		return nil
	}
	local := name
	for local == "context" || local == "dockerfile" || in.Folders[local] != "" {
		local = "_" + local // the main ones have these names
	}
	in.Attrs["context:"+name] = "local:" + local
	in.Folders[local] = value
	return isFolder(value)
}

// setLayout names an image in an image layout: a folder, and :TAG or @DIGEST.
func (in *Inputs) setLayout(name, spec string) error {
	dir, digest, _ := strings.Cut(spec, "@")
	tag := ""
	// A drive's letter has a colon too, which no tag ends with.
	if i := strings.LastIndexByte(dir, ':'); i >= 0 && !strings.ContainsAny(dir[i:], `/\`) {
		dir, tag = dir[:i], dir[i+1:]
	}
	if err := isFolder(dir); err != nil {
		return err
	}
	if digest == "" {
		var err error
		if digest, err = in.lookup(dir, tag); err != nil {
			return err
		}
	}
	// The name is part of no key; it only has to be one that references can have.
	store := fmt.Sprintf("layout%d", len(in.Layouts))
	in.Layouts[store] = dir
	in.Attrs["context:"+name] = "oci-layout://" + store + "@" + digest
	return nil
}

func isFolder(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", path)
	}
	return nil
}
