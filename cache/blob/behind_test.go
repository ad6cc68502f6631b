package blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// The system's memory holds little of a large blob that was stored, and the blob is
// what it was.
func TestIngestLetsMemoryGo(t *testing.T) {
	s := openStore(t, Options{})
	data := random(rarelyRead + 12345)
	d := digest(data)
	w, err := s.Ingest(context.Background(), d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for rest := data; len(rest) > 0; {
		n := min(1<<20, len(rest))
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		w.behind.wait() // as if the disk were as fast as the writer
		rest = rest[n:]
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	f, size, err := s.openFile(d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		t.Fatal(err)
	}
	switch fs.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		var held unix.Cachestat_t
		err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Len: uint64(size)}, &held, 0)
		if errors.Is(err, unix.ENOSYS) {
			t.Skip("the kernel does not say what it holds of a file")
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := held.Cache * uint64(unix.Getpagesize()); got > 2*behindSize {
			t.Errorf("%d MB of %d are held in memory", got>>20, size>>20)
		}
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil || Digest(h.Sum(nil)) != d {
		t.Errorf("the blob is another: %v", err)
	}
}

// A download that goes on, and one that begins anew, hold nothing back.
func TestIngestLargeAgain(t *testing.T) {
	s := openStore(t, Options{})
	data := random(rarelyRead)
	d := digest(data)
	for _, reset := range []bool{false, true} {
		w, err := s.Ingest(context.Background(), d, int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if reset {
			if err := w.Reset(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.Write(data[w.Offset() : len(data)/2]); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	w, err := s.Ingest(context.Background(), d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write(data[w.Offset():]); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Error(err)
	}
}
