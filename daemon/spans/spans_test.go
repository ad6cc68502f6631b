package spans

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// message builds one of fields: a string or []byte, an int (a varint) or a uint64
// (fixed) each.
func message(fields ...any) []byte {
	var b []byte
	for i := 0; i < len(fields); i += 2 {
		id := protowire.Number(fields[i].(int))
		switch v := fields[i+1].(type) {
		case string:
			b = protowire.AppendString(protowire.AppendTag(b, id, protowire.BytesType), v)
		case []byte:
			b = protowire.AppendBytes(protowire.AppendTag(b, id, protowire.BytesType), v)
		case int:
			b = protowire.AppendVarint(protowire.AppendTag(b, id, protowire.VarintType), uint64(v))
		case uint64:
			b = protowire.AppendFixed64(protowire.AppendTag(b, id, protowire.Fixed64Type), v)
		}
	}
	return b
}

func traceID(n byte) TraceID { return TraceID{15: n} }

// request is an export of spans of one trace, each with more fields.
func request(id TraceID, count int, more ...any) []byte {
	var group []byte
	for range count {
		span := message(append([]any{1, id[:], 2, []byte("12345678")}, more...)...)
		group = append(group, message(2, span)...)
	}
	return message(1, message(2, group))
}

type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newStore() (*Store, *clock) {
	c := &clock{time.Unix(1e9, 0)}
	return NewStore(c.Now), c
}

// TestSpan reads a span of which everything is set.
func TestSpan(t *testing.T) {
	s, _ := newStore()
	id := traceID(1)
	attribute := func(key string, value ...any) []byte { return message(1, key, 2, message(value...)) }
	span := message(
		1, id[:], 2, []byte("12345678"), 3, "a=b", 4, []byte("abcdefgh"), 5, "work", 6, 3,
		7, uint64(1_500_000_000), 8, uint64(2_000_000_000),
		9, attribute("text", 1, "x"), 9, attribute("flag", 2, 1), 9, attribute("number", 3, 7),
		9, attribute("real", 4, math.Float64bits(1.5)), 9, attribute("none", 4, math.Float64bits(math.NaN())),
		9, attribute("list", 5, message(1, message(3, 1), 1, message(1, "two"))), 9, attribute("map", 6, "x"),
		10, 2, 11, message(1, uint64(1_700_000_000), 2, "half", 3, attribute("k", 1, "v"), 4, 1), 12, 3,
		13, message(1, id[:], 2, []byte("ABCDEFGH")), 14, 4, 15, message(2, "broke", 3, 2))
	claim := s.Claim(id)
	if err := s.Take(message(1, message(2, message(2, span, 1, message(1, "lib", 2, "v2")), 1, message(1, attribute("service.name", 1, "client"))))); err != nil {
		t.Fatal(err)
	}
	got, dropped := claim.Release()
	if len(got) != 1 || dropped != 0 {
		t.Fatalf("%d spans are there, %d were dropped", len(got), dropped)
	}
	want := `{"Name":"work",` +
		`"SpanContext":{"TraceID":"00000000000000000000000000000001","SpanID":"3132333435363738","TraceFlags":"01","TraceState":"a=b","Remote":false},` +
		`"Parent":{"TraceID":"00000000000000000000000000000001","SpanID":"6162636465666768","TraceFlags":"01","TraceState":"","Remote":false},` +
		`"SpanKind":3,"StartTime":"1970-01-01T00:00:01.5Z","EndTime":"1970-01-01T00:00:02Z",` +
		`"Attributes":[{"Key":"text","Value":{"Type":"STRING","Value":"x"}},{"Key":"flag","Value":{"Type":"BOOL","Value":true}},` +
		`{"Key":"number","Value":{"Type":"INT64","Value":7}},{"Key":"real","Value":{"Type":"FLOAT64","Value":1.5}},` +
		`{"Key":"none","Value":{"Type":"STRING","Value":"NaN"}},{"Key":"list","Value":{"Type":"STRINGSLICE","Value":["1","two"]}},` +
		`{"Key":"map","Value":{"Type":"STRING","Value":"INVALID"}}],` +
		`"Events":[{"Name":"half","Attributes":[{"Key":"k","Value":{"Type":"STRING","Value":"v"}}],"DroppedAttributeCount":1,"Time":"1970-01-01T00:00:01.7Z"}],` +
		`"Links":[{"SpanContext":{"TraceID":"00000000000000000000000000000001","SpanID":"4142434445464748","TraceFlags":"01","TraceState":"","Remote":false},"Attributes":null,"DroppedAttributeCount":0}],` +
		`"Status":{"Code":"Error","Description":"broke"},"DroppedAttributes":2,"DroppedEvents":3,"DroppedLinks":4,"ChildSpanCount":0,` +
		`"Resource":[{"Key":"service.name","Value":{"Type":"STRING","Value":"client"}}],` +
		`"InstrumentationScope":{"Name":"lib","Version":"v2","SchemaURL":""},"InstrumentationLibrary":{"Name":"lib","Version":"v2","SchemaURL":""}}`
	if string(got[0]) != want {
		t.Errorf("the span is\n%s, want\n%s", got[0], want)
	}
}

// TestClaims has spans come before their build, in it, and for nobody.
func TestClaims(t *testing.T) {
	s, c := newStore()
	take := func(id TraceID, n int) {
		t.Helper()
		if err := s.Take(request(id, n)); err != nil {
			t.Fatal(err)
		}
	}
	take(traceID(1), 1)
	take(traceID(2), 1)
	one, other := s.Claim(traceID(1)), s.Claim(traceID(1))
	take(traceID(1), 2)
	c.now = c.now.Add(time.Hour)
	take(traceID(1), 1)
	if got, _ := one.Release(); len(got) != 4 {
		t.Errorf("a build finds %d spans, want 4", len(got))
	}
	c.now = c.now.Add(time.Hour)
	take(traceID(3), 1)
	if got, _ := other.Release(); len(got) != 4 {
		t.Errorf("another build of the trace finds %d spans, want 4", len(got))
	}
	if got, _ := s.Claim(traceID(2)).Release(); len(got) != 0 {
		t.Errorf("what nobody wanted for two hours is there: %d spans", len(got))
	}
	c.now = c.now.Add(time.Hour)
	s.clean()
	if len(s.traces) != 0 || s.size != 0 || s.idle != 0 {
		t.Errorf("%d traces are left, of %d bytes, %d unclaimed", len(s.traces), s.size, s.idle)
	}
}

// TestBounds sends more than there is room for, in all the ways there are.
func TestBounds(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	check := func(what string, s *Store) {
		t.Helper()
		size, idle := 0, 0
		for _, tr := range s.traces {
			bytes := overhead
			for _, span := range tr.spans {
				bytes += len(span) + overhead
			}
			if bytes != tr.size || bytes > maxTrace {
				t.Errorf("%s: a trace of %d bytes, counted as %d", what, bytes, tr.size)
			}
			if size += bytes; tr.claims == 0 {
				idle += bytes
			}
		}
		if size != s.size || idle != s.idle || size > maxTotal || idle > maxUnclaimed {
			t.Errorf("%s: %d bytes, %d of them unclaimed; counted as %d and %d", what, size, idle, s.size, s.idle)
		}
	}
	s, _ := newStore()
	claim := s.Claim(traceID(1))
	for range 20 {
		if err := s.Take(request(traceID(1), 1, 5, long)); err != nil {
			t.Fatal(err)
		}
	}
	check("one trace", s)
	if got, dropped := claim.Release(); len(got) != 7 || dropped != 13 {
		t.Errorf("of 20 large spans %d are there, %d were dropped", len(got), dropped)
	}
	s, _ = newStore()
	for n := range byte(100) {
		if err := s.Take(request(traceID(n+1), 3, 5, long)); err != nil {
			t.Fatal(err)
		}
		check("traces of nobody", s)
	}
	s, _ = newStore()
	for n := range byte(20) {
		s.Claim(traceID(n + 1))
		if err := s.Take(request(traceID(n+1), 5, 5, long)); err != nil {
			t.Fatal(err)
		}
		check("traces of many builds", s)
	}
	if err := s.Take(request(traceID(1), maxRequest+1)); err == nil {
		t.Error("a request of too many spans is taken")
	}
	if err := s.Take([]byte("no message")); err == nil {
		t.Error("what is no message is taken")
	}
}

// TestParts gives a span more parts than it may have.
func TestParts(t *testing.T) {
	var more []any
	for i := range 1000 {
		more = append(more, 9, message(1, fmt.Sprint(i)), 11, []byte{}, 13, []byte{})
	}
	s, _ := newStore()
	claim := s.Claim(traceID(1))
	if err := s.Take(request(traceID(1), 1, more...)); err != nil {
		t.Fatal(err)
	}
	got, _ := claim.Release()
	var span Span
	if err := json.Unmarshal(got[0], &span); err != nil {
		t.Fatal(err)
	}
	kept := len(span.Attributes) + len(span.Events) + len(span.Links)
	dropped := span.DroppedAttributes + span.DroppedEvents + span.DroppedLinks
	if kept != maxParts || kept+dropped != 3000 {
		t.Errorf("of 3000 parts %d are there, %d were dropped", kept, dropped)
	}
}

func FuzzTake(f *testing.F) {
	f.Add(request(traceID(1), 2, 5, "name", 9, message(1, "k", 2, message(5, message(1, message(3, 4))))))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, _ := newStore()
		claim := s.Claim(traceID(1))
		err := s.Take(data)
		spans, _ := claim.Release()
		for _, span := range spans {
			var out Span
			if jerr := json.Unmarshal(span, &out); jerr != nil {
				t.Errorf("%s: %v (Take: %v)", span, jerr, err)
			}
		}
	})
}
