package executor

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

// Runs leave no descriptor, goroutine or thread behind, whether they went well or not.
func TestLeaks(t *testing.T) {
	n := newNative(t)
	source := files(t, map[string]string{"s": ""})
	round := func(i int) {
		s := shell(t, "echo x")
		s.Stdout, s.Mounts = os.NewFile(^uintptr(0), "closed"), []Mount{{Dest: "/a/b", Source: source}, {Dest: "/o", Overlay: &Overlay{Lower: []string{source}}, Selector: "s"}}
		switch i % 5 {
		case 1:
			s.User = "nobody-at-all"
		case 2:
			s.Mounts = append(s.Mounts, Mount{Dest: "/x", Source: "/nosuch"})
		case 3:
			s.Args = []string{"/nosuch"}
		case 4:
			s.Terminal = &Terminal{}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+i)*time.Millisecond)
		if i >= 5 {
			ctx = context.Background()
		}
		n.Run(ctx, s)
		cancel()
	}
	count := func() (fds, goroutines, threads int) {
		f, _ := os.ReadDir("/proc/self/fd")
		th, _ := os.ReadDir("/proc/self/task")
		return len(f), runtime.NumGoroutine(), len(th)
	}
	for i := range 10 {
		round(i)
	}
	fds, goroutines, threads := count()
	for i := range 100 {
		round(i)
	}
	var f, g, th int
	for range 100 {
		if f, g, th = count(); f <= fds+2 && g <= goroutines+2 && th <= threads+8 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	list := ""
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		list += fmt.Sprintln(e.Name(), target)
	}
	t.Errorf("descriptors %d to %d, goroutines %d to %d, threads %d to %d\n%s", fds, f, goroutines, g, threads, th, list)
}
