package tree_test

import (
	"fmt"

	"github.com/kiln-build/kiln/cache/tree"
)

func ExampleBuilder() {
	n := tree.NewMemNodes()
	var b tree.Builder
	for _, path := range []string{"usr/bin/sh", "etc/passwd"} {
		if err := b.Set(path, tree.Entry{Kind: tree.File, Mode: 0o644}); err != nil {
			fmt.Println(err)
		}
	}
	root, err := b.Root(n)
	if err != nil {
		fmt.Println(err)
	}
	err = tree.Walk(n, root, func(path string, e tree.Entry) error {
		fmt.Printf("%q %o\n", path, e.Mode)
		return nil
	})
	fmt.Println(err)
	// Output:
	// "" 755
	// "etc" 755
	// "etc/passwd" 644
	// "usr" 755
	// "usr/bin" 755
	// "usr/bin/sh" 644
	// <nil>
}

// A step's layer is the difference between what it got and what it left.
func ExampleDiff() {
	n := tree.NewMemNodes()
	var b tree.Builder
	for _, path := range []string{"etc/hosts", "etc/passwd"} {
		if err := b.Set(path, tree.Entry{Kind: tree.File}); err != nil {
			fmt.Println(err)
		}
	}
	before, _ := b.Root(n)

	ed := tree.Edit(n, before)
	_ = ed.Remove("etc/hosts")
	_ = ed.Set("etc/motd", tree.Entry{Kind: tree.File, Mode: 0o644})
	after, _ := ed.Root()

	layer, _ := tree.Diff(n, before, after, tree.ByAddr)
	_ = tree.Walk(n, layer, func(path string, e tree.Entry) error {
		fmt.Printf("%q removed: %v\n", path, e.Kind == tree.Whiteout)
		return nil
	})
	again, _ := tree.Apply(n, before, layer)
	fmt.Println(again.Equal(after))
	// Output:
	// "" removed: false
	// "etc" removed: false
	// "etc/hosts" removed: true
	// "etc/motd" removed: false
	// true
}

// A file that is to be made is resolved first: links stay in the tree, and what
// is missing can be made.
func ExampleResolve() {
	n := tree.NewMemNodes()
	var b tree.Builder
	_ = b.Set("srv", tree.Entry{Kind: tree.Symlink, Target: "/var/srv"})
	_ = b.Set("var/srv", tree.Entry{Kind: tree.Dir, Mode: 0o755})
	root, _ := b.Root(n)
	at, err := tree.Resolve(n, root, "/srv/www/index.html", true)
	fmt.Printf("%s + %s: %v\n", at.Path, at.Rest, err)
	// Output: var/srv + www/index.html: resolve /srv/www/index.html: file does not exist
}
