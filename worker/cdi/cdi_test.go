package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// reference is the specification that the Dockerfile reference shows.
const reference = `
cdiVersion: "0.6.0"
kind: "vendor1.com/device"
devices:
  - name: foo
    containerEdits:
      env:
        - FOO=injected
  - name: bar
    annotations:
      org.mobyproject.buildkit.device.class: class1
    containerEdits:
      env:
        - BAR=injected
  - name: baz
    annotations:
      org.mobyproject.buildkit.device.class: class1
    containerEdits:
      env:
        - BAZ=injected
  - name: qux
    annotations:
      org.mobyproject.buildkit.device.class: class2
    containerEdits:
      env:
        - QUX=injected
annotations:
  org.mobyproject.buildkit.device.autoallow: true
`

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(devices []*Device) string {
	var out []string
	for _, d := range devices {
		out = append(out, strings.TrimPrefix(d.Name, "vendor1.com/device="))
	}
	return strings.Join(out, " ")
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", reference)
	write(t, dir, "no-specification.txt", "x")
	s, err := Read(filepath.Join(dir, "nothing"), dir)
	if err != nil || s.Broken() != nil {
		t.Fatal(err, s.Broken())
	}
	for _, test := range []struct{ name, want string }{
		{"vendor1.com/device=foo", "foo"},
		// The first by name, and all.
		{"vendor1.com/device", "bar"},
		{"vendor1.com/device=*", "bar baz foo qux"},
		{"class1", "bar baz"},
		{"class2", "qux"},
		{"vendor1.com/device=other", ""},
		{"vendor2.com/device", ""},
		{"class3", ""},
		{"", ""},
		{"=", ""},
	} {
		if got := names(s.Find(test.name)); got != test.want {
			t.Errorf("%q: got %q, want %q", test.name, got, test.want)
		}
	}
	d := s.Find("vendor1.com/device=qux")[0]
	if !d.Allowed || d.Class != "class2" || d.Kind() != "vendor1.com/device" || !slices.Equal(d.Edits.Env, []string{"QUX=injected"}) || d.File != filepath.Join(dir, "a.yaml") {
		t.Errorf("got %+v", d)
	}
}

// TestFolders has one device in several files.
func TestFolders(t *testing.T) {
	spec := func(value string) string {
		return `{"cdiVersion": "0.6.0", "kind": "v.com/c", "devices": [{"name": "d", "containerEdits": {"env": ["FROM=` + value + `"]}}]}`
	}
	low, high := t.TempDir(), t.TempDir()
	find := func() string {
		s, err := Read(low, high)
		if err != nil {
			t.Fatal(err)
		}
		if f := s.Find("v.com/c=d"); len(f) == 1 {
			return f[0].Edits.Env[0]
		}
		if s.Broken() == nil {
			t.Error("the device is gone, and nobody says why")
		}
		return ""
	}
	write(t, low, "a.json", spec("low"))
	if got := find(); got != "FROM=low" {
		t.Errorf("got %q", got)
	}
	write(t, high, "a.json", spec("high"))
	if got := find(); got != "FROM=high" {
		t.Errorf("a later folder: got %q", got)
	}
	// Two in one folder: which of them is meant nobody knows.
	write(t, high, "b.yaml", spec("other"))
	if got := find(); got != "" {
		t.Errorf("a conflict: got %q", got)
	}
	// A file that is broken takes no other with it.
	write(t, high, "b.yaml", "kind: [")
	if got := find(); got != "FROM=high" {
		t.Errorf("beside a broken file: got %q", got)
	}
}

func TestParse(t *testing.T) {
	head := "cdiVersion: 0.6.0\nkind: v.com/c\ndevices:\n- name: d\n  containerEdits:\n    "
	for _, test := range []struct {
		text string
		want string // of the error; empty is none
	}{
		{head + "deviceNodes: [{path: /dev/x, type: c, major: 1, minor: 2, fileMode: 0666, permissions: rw, uid: 1}]", ""},
		{head + "mounts: [{hostPath: /a, containerPath: /b, options: [ro, bind]}]\n    hooks: [{hookName: createContainer, path: /h, args: [h, x], timeout: 3}]\n    additionalGids: [5]", ""},
		{`{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"d:1","containerEdits":{}}],"more":1}`, ""},
		{"", "kind"},
		{"x", "yaml"},
		{"cdiVersion: 1\nkind: c", "kind"},
		{"cdiVersion: 1\nkind: v/c/d", "kind"},
		{"kind: v.com/c", "cdiVersion"},
		{strings.Replace(head, "name: d", "name: d/e", 1) + "env: [A=b]", "not the name"},
		{head + "env: [A=b]\n- name: d\n  containerEdits: {env: [A=b]}", "twice"},
		{head + "env: [A]", "no variable"},
		{head + "env: [=b]", "no variable"},
		{head + "deviceNodes: [{path: x}]", `the path "x"`},
		{head + "deviceNodes: [{path: /x, type: bc}]", `type "bc"`},
		{head + "deviceNodes: [{path: /x, type: d}]", `type "d"`},
		{head + "deviceNodes: [{path: /x, permissions: rx}]", `permissions "rx"`},
		{head + "mounts: [{hostPath: /x}]", "names no path"},
		{head + "hooks: [{hookName: never, path: /x}]", "never"},
		{head + "hooks: [{hookName: prestart}]", "prestart"},
		{head + "additionalGids: [-1]", "yaml"},
	} {
		_, err := parse([]byte(test.text))
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: got %v, want it to say %q", test.text, err, test.want)
		}
	}
}

func TestUnsupported(t *testing.T) {
	for _, test := range []struct {
		edits Edits
		want  string
	}{
		{Edits{Nodes: []Node{{Path: "/dev/x", Type: "u"}}, Mounts: []Mount{{Type: "bind"}, {}}}, ""},
		{Edits{NetDevices: []any{1}}, "a network device"},
		{Edits{IntelRdt: map[string]any{}}, "Intel RDT"},
		{Edits{Nodes: []Node{{Type: "p"}}}, "a named pipe as a device node"},
		{Edits{Mounts: []Mount{{Type: "tmpfs"}}}, "a mount of type tmpfs"},
	} {
		if got := test.edits.Unsupported(); got != test.want {
			t.Errorf("%+v: got %q, want %q", test.edits, got, test.want)
		}
	}
}

// FuzzParse reads whatever comes: what is taken has names that can be looked up.
func FuzzParse(f *testing.F) {
	f.Add([]byte(reference))
	f.Add([]byte(`{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"d","containerEdits":{"deviceNodes":[{"path":"/dev/x"}]}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		devices, err := parse(data)
		if err != nil {
			return
		}
		s := &Specs{devices: map[string]*Device{}}
		for _, d := range devices {
			s.devices[d.Name] = d
			s.order = append(s.order, d.Name)
		}
		for _, d := range devices {
			if got := s.Find(d.Name); len(got) != 1 || got[0] != d {
				t.Errorf("%q is not found", d.Name)
			}
		}
	})
}
