package request

// FolderHeader is the header of a request to a daemon in which a client says where
// a folder is that it lends: its name in the build, "=", and its absolute path. A
// kiln daemon that may read there for this client does, in place of asking the
// client for the files; other daemons do not look at it.
const FolderHeader = "kiln-folder-bin"
