package history

import (
	"encoding/csv"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/util/gitutil"
	"google.golang.org/grpc/codes"
)

// Filter picks records.
type Filter func(*controlapi.BuildHistoryRecord) bool

// ParseFilter reads the filters of a request, one of which has to hold; none is
// all records. Each is a list with commas in it, of which every part has to hold:
// "startedAt", "completedAt" and "duration" with "<", "<=", ">" or ">=", of a time
// or of how long ago, and what containerd's filters say of "ref", "repository" and
// "status" (running, completed, error, canceled).
func ParseFilter(list []string, now time.Time) (Filter, error) {
	var any []Filter
	for _, text := range list {
		f, err := parseOne(text, now)
		if err != nil {
			return nil, fmt.Errorf("failed to parse history filter %q: %w", text, err)
		}
		any = append(any, f)
	}
	return func(r *controlapi.BuildHistoryRecord) bool {
		return len(any) == 0 || slices.ContainsFunc(any, func(f Filter) bool { return f(r) })
	}, nil
}

func parseOne(text string, now time.Time) (Filter, error) {
	var all []Filter
	var words []string
	parts, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		f, err := parseTime(part, now)
		if err != nil {
			return nil, err
		}
		if f != nil {
			all = append(all, f)
		} else {
			words = append(words, part)
		}
	}
	if len(words) > 0 {
		f, err := filters.ParseAll(strings.Join(words, ","))
		if err != nil {
			return nil, err
		}
		all = append(all, func(r *controlapi.BuildHistoryRecord) bool { return f.Match(fields(r)) })
	}
	return func(r *controlapi.BuildHistoryRecord) bool {
		return !slices.ContainsFunc(all, func(f Filter) bool { return !f(r) })
	}, nil
}

// operators are those of times, the longer ones first.
var operators = []string{">=", "<=", ">", "<"}

// parseTime reads a comparison of times; nil is another kind of filter.
func parseTime(part string, now time.Time) (Filter, error) {
	at := strings.IndexAny(part, "<>")
	if at < 0 {
		return nil, nil
	}
	key, rest := part[:at], part[at:]
	var op string
	for _, o := range operators {
		if strings.HasPrefix(rest, o) {
			op = o
			break
		}
	}
	value := rest[len(op):]
	var want int64
	var get func(*controlapi.BuildHistoryRecord) int64
	switch key {
	case "startedAt", "completedAt":
		t, err := time.Parse(time.RFC3339, value)
		if ago, derr := time.ParseDuration(value); derr == nil {
			t, err = now.Add(-ago), nil
		}
		if err != nil {
			return nil, fmt.Errorf("invalid time %s", value)
		}
		want = t.Unix()
		get = func(r *controlapi.BuildHistoryRecord) int64 { return r.CreatedAt.AsTime().Unix() }
		if key == "completedAt" {
			get = completed
		}
	case "duration":
		d, err := time.ParseDuration(value)
		if err != nil {
			return nil, fmt.Errorf("invalid duration %s", value)
		}
		want, get = int64(d), duration
	default:
		return nil, nil
	}
	return func(r *controlapi.BuildHistoryRecord) bool {
		switch v := get(r); op {
		case ">=":
			return v >= want
		case "<=":
			return v <= want
		case ">":
			return v > want
		default:
			return v < want
		}
	}, nil
}

func completed(r *controlapi.BuildHistoryRecord) int64 {
	if r.CompletedAt == nil {
		return 0
	}
	return r.CompletedAt.AsTime().Unix()
}

func duration(r *controlapi.BuildHistoryRecord) int64 {
	if r.CompletedAt == nil {
		return 0
	}
	return int64(r.CompletedAt.AsTime().Sub(r.CreatedAt.AsTime()))
}

// fields are what filters can ask of a record.
func fields(r *controlapi.BuildHistoryRecord) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "ref":
			return r.Ref, r.Ref != ""
		case "status":
			return status(r), true
		case "repository":
			if v, ok := r.FrontendAttrs["vcs:source"]; ok {
				return v, true
			}
			if u, err := gitutil.ParseURL(r.FrontendAttrs["context"]); err == nil {
				return u.Remote, true
			}
		}
		return "", false
	})
}

// status says how a build stands.
func status(r *controlapi.BuildHistoryRecord) string {
	switch {
	case r.CompletedAt == nil:
		return "running"
	case r.Error == nil:
		return "completed"
	case codes.Code(r.Error.Code) == codes.Canceled || strings.Contains(r.Error.Message, "context canceled"):
		return "canceled"
	}
	return "error"
}

// Newest gives the newest of records, the newest first; a limit of 0 leaves them as they are.
func Newest(list []*controlapi.BuildHistoryRecord, limit int) []*controlapi.BuildHistoryRecord {
	if limit == 0 {
		return list
	}
	slices.SortStableFunc(list, func(a, b *controlapi.BuildHistoryRecord) int {
		return b.CreatedAt.AsTime().Compare(a.CreatedAt.AsTime())
	})
	return list[:min(limit, len(list))]
}
