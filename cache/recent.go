package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// recent is the file of what was written last and is not in Badger yet. Most
// processes write little: for them Badger would make its files, sync some of them,
// make a table when it is closed and sync that too, which takes several times as
// long as a small build, and as long as the disk likes where others use it. So
// small batches are appended here, Badger is left as it is, or not even made, and
// what has come together goes to it at once when it is more than recentBytes.
//
// The file is batches, each of them written at once: the length of what follows the
// checksum in four bytes, its CRC-32C in four bytes, both little-endian, and then
// for each value its key (bytes) and itself: a uint, which is 0 for a key that was
// deleted and else the length and one, and the bytes. The first batch that is not
// whole ends the file: a process was killed, or the machine went down, while it
// was written. So what is lost is always the latest.
//
// It is not safe for concurrent use; database.flushMu guards it.
type recent struct {
	path string
	file *os.File // nil until something is written
	size int64    // of the batches that are whole
	// synced is whether something of it may belong to an epoch that was closed.
	synced bool
}

const (
	// recentBytes is how large the file may become. Every process reads all of it,
	// which takes a millisecond or two then.
	recentBytes = 1 << 20
	recentHead  = 8
)

// openRecent reads the file's values; those of keys that were deleted are nil.
func openRecent(path string) (recent, map[string][]byte, error) {
	r, values := recent{path: path}, map[string][]byte{}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, values, nil
	}
	if err != nil {
		return r, nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, recentBytes))
	if err != nil {
		return r, nil, err
	}
	r.size = int64(readBatches(b, values))
	r.synced = r.size > 0
	return r, values, nil
}

// readBatches puts what whole batches hold into values, which share b's bytes, and
// gives how long they are together.
func readBatches(b []byte, values map[string][]byte) (size int) {
	for len(b)-size > recentHead {
		head, body := b[size:size+recentHead], b[size+recentHead:]
		n := binary.LittleEndian.Uint32(head)
		if n == 0 || uint64(n) > uint64(len(body)) {
			break
		}
		body = body[:n]
		if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(head[4:]) || !readBatch(body, values) {
			break
		}
		size += recentHead + int(n)
	}
	return size
}

// readBatch reads one batch, and reports whether it is as batches are written; of
// one that is not, nothing is taken.
func readBatch(body []byte, values map[string][]byte) bool {
	for _, take := range []bool{false, true} {
		d := decoder{b: body}
		for len(d.b) > 0 {
			key, length := d.bytes(), d.uint()
			var value []byte
			if length > 0 {
				if length-1 > uint64(len(d.b)) {
					return false
				}
				value, d.b = d.b[:length-1:length-1], d.b[length-1:]
			}
			if d.err != nil {
				return false
			}
			if take {
				values[string(key)] = value
			}
		}
	}
	return true
}

// encodeBatch gives the bytes of a batch, its keys in order.
func encodeBatch(batch map[string][]byte, keys []string) []byte {
	b := make([]byte, recentHead, recentHead+batchBytes(batch))
	for _, k := range keys {
		b = appendText(b, k)
		v := batch[k]
		if v == nil {
			b = append(b, 0)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(v))+1)
		b = append(b, v...)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)-recentHead))
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[recentHead:], castagnoli))
	return b
}

// batchBytes gives a bound of how long a batch is without its head.
func batchBytes(batch map[string][]byte) (n int) {
	for k, v := range batch {
		n += len(k) + len(v) + 2*binary.MaxVarintLen32
	}
	return n
}

// append writes a batch after the others. One that could not be written is not
// there: the next is written over it.
func (r *recent) append(batch []byte) error {
	if r.file == nil {
		f, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		// What is left there of a batch that is not whole.
		if err := f.Truncate(r.size); err != nil {
			return errors.Join(err, f.Close())
		}
		r.file = f
	}
	if _, err := r.file.WriteAt(batch, r.size); err != nil {
		return err
	}
	r.size += int64(len(batch))
	return nil
}

// sync makes it durable.
func (r *recent) sync() error {
	if r.file == nil {
		return nil
	}
	r.synced = true
	return r.file.Sync()
}

func (r *recent) close() error {
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}

// remove removes the file: Badger has it all.
func (r *recent) remove() error {
	if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := r.close()
	r.size, r.synced = 0, false
	return err
}

// note writes a batch to the file of recent values, where Badger is not open for
// writing and there is room for it. flushMu is held.
func (d *database) note(batch map[string][]byte, keys []string) (done bool, err error) {
	if d.load >= light || d.recent.size+recentHead+int64(batchBytes(batch)) > d.recentMax {
		return false, nil
	}
	if err := d.recent.append(encodeBatch(batch, keys)); err != nil {
		return false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for k, v := range batch {
		d.recentValues[k] = v
	}
	return true, nil
}

// settle writes what is recent to Badger. flushMu is held.
//
// While the file is there Badger holds nothing that is newer, so that a process
// that is killed in between leaves values twice that are the same. The file's
// removal may reach the disk before what Badger wrote does, which is mapped: what
// was durable already is made so again first. Memtables are large ones then, as
// Badger syncs only the one that it is writing to.
func (d *database) settle() error {
	d.mu.RLock()
	values := d.recentValues
	d.mu.RUnlock()
	if len(values) == 0 {
		return nil
	}
	d.written += d.recent.size
	if d.load < heavy {
		if err := d.reopen(heavy); err != nil {
			return err
		}
	}
	if err := d.setAll(values, sortedKeys(values)); err != nil {
		return err
	}
	if d.recent.synced {
		if err := d.syncBadger(); err != nil {
			return err
		}
	}
	if err := d.recent.remove(); err != nil {
		return fmt.Errorf("removing what the database has taken over: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.recentValues = map[string][]byte{}
	return nil
}
