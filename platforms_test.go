package kiln

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

func TestPlatformWarnings(t *testing.T) {
	own := platforms.FormatAll(platforms.Normalize(platforms.DefaultSpec()))
	v, err := llb.Source("local://x", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, asked, made string
		index             bool
		want              []string
	}{
		{"nothing was asked for", "", own, false, nil},
		{"what was asked for", "linux/riscv64", "linux/riscv64", false, nil},
		{"another one", "linux/riscv64", "linux/s390x", false, []string{`Requested platform "linux/riscv64" does not match result platform "linux/s390x"`}},
		{"another one than the machine's", "", "linux/s390x", false, []string{`Requested platform "` + own + `" does not match result platform "linux/s390x"`}},
		{"the version is the image's to know", "windows/amd64", "windows(10.0.17763)/amd64", false, nil},
		{"a version that was asked for", "windows(10.0.20348)/amd64", "windows(10.0.17763)/amd64", false,
			[]string{`Requested platform "windows(10.0.20348)/amd64" does not match result platform "windows(10.0.17763)/amd64"`}},
		{"several", "linux/riscv64,linux/s390x", "linux/s390x linux/riscv64", true, nil},
		{"one for several", "linux/riscv64,linux/s390x", own, false, []string{"Multiple platforms requested but result is not multi-platform"}},
		{"an index of one for several", "linux/riscv64,linux/s390x", "linux/s390x", true,
			[]string{"Requested platforms linux/riscv64,linux/s390x do not match result platforms linux/s390x"}},
		{"several for one", "linux/s390x", "linux/s390x linux/riscv64", true,
			[]string{"Requested platforms linux/s390x do not match result platforms linux/riscv64,linux/s390x"}},
		{"others", "linux/riscv64,linux/s390x", "linux/mips linux/s390x", true,
			[]string{"Requested platforms linux/riscv64,linux/s390x do not match result platforms linux/mips,linux/s390x"}},
		{"one twice", "linux/s390x,linux/s390x", "linux/s390x", true, []string{`Duplicate platform result requested "linux/s390x"`}},
		{"nothing was made", "linux/s390x", "", false, nil},
	} {
		r := &frontend.Result{Index: tt.index}
		for _, name := range strings.Fields(tt.made) {
			r.Images = append(r.Images, frontend.ResultImage{Platform: platforms.MustParse(name), Root: v.Output(0)})
		}
		if tt.made == "" {
			r.Images = []frontend.ResultImage{{Platform: ocispecs.Platform{OS: "linux", Architecture: "riscv64"}}}
		}
		if got := platformWarnings(tt.asked, r); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
