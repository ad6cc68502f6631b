package caller

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"google.golang.org/grpc/metadata"

	"github.com/kiln-build/kiln/worker"
)

// Local gives the client's folder called name itself where it is read in place. Else
// it brings the folder's mirror up to date, in what the filter lets through, and
// gives that. What another filter let through before stays: the worker scans with
// the filter too, and so does not see it. Where metadata alone is wanted the mirror is
// one of the filter's own, which holds nothing else.
func (c *Caller) Local(ctx context.Context, name string, f worker.Filter, came func(int)) (string, error) {
	owner, conn := c.other(ctx, f.Session)
	if dir, ok := c.here[name]; ok && conn == nil && !f.MetadataOnly {
		return dir, nil
	}
	if conn == nil {
		var err error
		if conn, err = c.get(ctx); err != nil {
			return "", err
		}
		owner = c.id
	}
	m, err := c.mirror(owner, conn.SharedKey(), name, f)
	if err != nil {
		return "", err
	}
	m.transfer.Lock()
	defer m.transfer.Unlock()
	ctx, cancel := context.WithCancel(conn.Context(ctx))
	defer cancel()
	stream, err := filesync.NewFileSyncClient(conn.Conn()).DiffCopy(metadata.NewOutgoingContext(ctx, filterHeader(name, f)))
	if err != nil {
		return "", fmt.Errorf("asking the client for the folder: %w", err)
	}
	root, err := os.OpenRoot(m.path)
	if err != nil {
		return "", fmt.Errorf("opening the mirror: %w", err)
	}
	defer root.Close()
	if err := receive(ctx, stream, root, f, came); err != nil {
		return "", fmt.Errorf("receiving the folder from the client: %w", err)
	}
	return m.path, stream.CloseSend()
}

// keyless stands for the key of folders whose owner gives none, where the graph says
// by itself that they are to be compared with what came before by metadata, and it is
// known who asks: such a mirror is for the sessions of one user. By metadata that it
// makes up, a client could otherwise be given the files of another. Folders without a
// key have a mirror for one session else: who has no key cannot tell its folders from
// those of other people.
const keyless = "local.differ=metadata\x00"

// grace is how long a session of another is waited for, as with BuildKit.
const grace = 5 * time.Second

// other gives the session that a graph says a folder is in; none where it is the
// build's own, or does not come. Whoever knows a session's id may use it: it is random,
// and its client has given it away.
func (c *Caller) other(ctx context.Context, id string) (string, session.Caller) {
	if id == "" || id == c.id {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	conn, err := c.manager.Get(ctx, id, false)
	if err != nil {
		return "", nil
	}
	return id, conn
}

// mirror gives the build's mirror of a folder of a session.
func (c *Caller) mirror(owner, key, name string, f worker.Filter) (*mirror, error) {
	if key == "" && c.user != "" && f.Differ == worker.DifferMetadata {
		key = keyless + c.user
	}
	if f.MetadataOnly {
		f.Session = "" // the owner stands for it
		own, err := json.Marshal(f)
		if err != nil {
			return nil, err
		}
		name += "\x00" + string(own)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	held := owner + "\x00" + name
	if m, ok := c.held[held]; ok {
		return m, nil
	}
	m, err := c.mirrors.take(key, name, owner)
	if err != nil {
		return nil, err
	}
	c.held[held] = m
	return m, nil
}

// filterHeader says which folder is wanted, and what of it, in the headers that
// BuildKit's clients read. Values that are not ASCII are escaped, and marked so.
func filterHeader(name string, f worker.Filter) metadata.MD {
	md := metadata.MD{}
	for key, list := range map[string][]string{
		"dir-name": {name}, "include-patterns": f.Include, "exclude-patterns": f.Exclude, "followpaths": f.Follow,
	} {
		if len(list) == 0 {
			continue
		}
		if strings.IndexFunc(strings.Join(list, ""), func(r rune) bool { return r > 0x7f }) >= 0 {
			escaped := make([]string, len(list))
			for i, s := range list {
				escaped[i] = url.QueryEscape(s)
			}
			list = escaped
			md[key+"-encoded"] = []string{"1"}
		}
		md[key] = list
	}
	return md
}
