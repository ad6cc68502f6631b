package tree

import "iter"

// EntryID is the identity of an entry without its name.
type EntryID [32]byte

// EntryKey is the full identity of an entry without its name: times and tags too.
type EntryKey [32]byte

func (e Entry) ID() EntryID                  { panic("unwritten") }
func (e Entry) Key() EntryKey                { panic("unwritten") }
func (e Entry) Equal(o Entry) bool           { panic("unwritten") } // names and all
func (e Entry) AppendEncode(b []byte) []byte { panic("unwritten") }
func DecodeEntry(b []byte) (Entry, error)    { panic("unwritten") }
func CheckPath(p string) error               { panic("unwritten") }
func CheckName(name string) error            { panic("unwritten") }
func (e Entry) Check() error                 { panic("unwritten") }

type MemNodes struct{}

func NewMemNodes() *MemNodes                          { panic("unwritten") }
func (m *MemNodes) Node(a Addr) ([]byte, error)       { panic("unwritten") }
func (m *MemNodes) PutNode(a Addr, node []byte) error { panic("unwritten") }

func Lookup(n Nodes, root Entry, path string) (Entry, error) { panic("unwritten") }
func ReadDir(n Nodes, r Ref) iter.Seq2[Entry, error]         { panic("unwritten") }

// Walk calls fn for root (path "") and all below in path order; fs.SkipDir, fs.SkipAll work.
func Walk(n Nodes, root Entry, fn func(path string, e Entry) error) error { panic("unwritten") }

// Resolved is how far a path led: Rest is "" if all of it exists; else the
// error wraps fs.ErrNotExist (or ENOTDIR, ELOOP), Path and Entry are the deepest
// thing that exists and Rest the clean remainder below it.
type Resolved struct {
	Path  string
	Entry Entry
	Rest  string
}

func Resolve(n Nodes, root Entry, path string, followLast bool) (Resolved, error) { panic("unwritten") }

// Builder takes entries by path in any order. The zero value is an empty tree.
type Builder struct {
	MTime int64 // of the root and of parents that nothing was said about
}

func (b *Builder) Set(path string, e Entry) error { panic("unwritten") }
func (b *Builder) SetOpaque(path string) error    { panic("unwritten") }
func (b *Builder) Get(path string) (Entry, bool)  { panic("unwritten") } // Children of a Dir unset
func (b *Builder) Root(n Nodes) (Entry, error)    { panic("unwritten") }

// Editor changes a tree.
type Editor struct{}

func Edit(n Nodes, root Entry) *Editor                                    { panic("unwritten") }
func (ed *Editor) Get(path string) (Entry, error)                         { panic("unwritten") } // settles what changed below path
func (ed *Editor) Stat(path string) (Entry, error)                        { panic("unwritten") } // as Get; Children may be stale, costs less
func (ed *Editor) Set(path string, e Entry) error                         { panic("unwritten") } // parent must exist; a Dir brings its Children: this grafts
func (ed *Editor) SetMeta(path string, e Entry) error                     { panic("unwritten") } // of an existing directory, Children kept
func (ed *Editor) MkdirAll(path string, like Entry) error                 { panic("unwritten") } // existing directories are left as they are
func (ed *Editor) Remove(path string) error                               { panic("unwritten") }
func (ed *Editor) Resolve(path string, followLast bool) (Resolved, error) { panic("unwritten") }
func (ed *Editor) Root() (Entry, error)                                   { panic("unwritten") } // the editor can be used on

// By says which differences count.
type By int

const (
	ByAddr By = iota // everything: times and tags too
	ByID             // identity only
)

func Apply(n Nodes, lower, layer Entry) (Entry, error)       { panic("unwritten") }
func Diff(n Nodes, lower, upper Entry, by By) (Entry, error) { panic("unwritten") }
func Squash(n Nodes, layers ...Entry) (Entry, error)         { panic("unwritten") }

// Changed calls fn for what differs; Kind None stands for absent. A directory on one side only is reported once.
func Changed(n Nodes, a, b Entry, by By, fn func(path string, old, new Entry) error) error {
	panic("unwritten")
}

// Verdict is what Filter does with an entry.
type Verdict int

const (
	Drop  Verdict = iota // leave it out, and all below
	Keep                 // keep it, and all below as it is
	Enter                // keep the directory, and ask about what is in it
	Probe                // ask about what is in it, and keep the directory if any of that is kept
)

func Filter(n Nodes, root Entry, judge func(path string, e Entry) Verdict) (Entry, error) {
	panic("unwritten")
}
func Map(n Nodes, root Entry, fn func(path string, e Entry) (Entry, error)) (Entry, error) {
	panic("unwritten")
}

// CheckNode checks bytes from elsewhere: Addr, ID, canonical form. Below its size bound it never panics.
func CheckNode(r Ref, node []byte) error { panic("unwritten") }

// Refs lists the nodes that a node refers to, for collection and transfer.
func Refs(node []byte) iter.Seq2[Ref, error] { panic("unwritten") }

// NodeEntries lists the entries in a node itself (none in an inner node).
func NodeEntries(node []byte) iter.Seq2[Entry, error] { panic("unwritten") }

// Verify checks all of a tree.
func Verify(n Nodes, root Entry) error { panic("unwritten") }
