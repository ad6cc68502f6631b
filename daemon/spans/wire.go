package spans

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// The messages are read field by field: decoded by generated types, a message of
// empty values would take a hundred times its size in memory, and every start of the
// program would pay for those types.

var (
	errMalformed = errors.New("the spans are no message of OpenTelemetry's protocol")
	errTooMany   = fmt.Errorf("more than %d spans at once", maxRequest)
)

// maxParts bounds the attributes, events and links of one span together. The others
// are counted as dropped, as programs do that make spans.
const maxParts = 256

// field is one of a message: of bytes, or of a number.
type field struct {
	id     protowire.Number
	bytes  []byte
	number uint64
}

// each gives the fields of a message.
func each(message []byte, visit func(field) error) error {
	for len(message) > 0 {
		id, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return errMalformed
		}
		message = message[n:]
		f := field{id: id}
		switch kind {
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			f.number, n = protowire.ConsumeVarint(message)
		case protowire.Fixed64Type:
			f.number, n = protowire.ConsumeFixed64(message)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(message)
			f.number = uint64(v)
		default:
			f.id, n = 0, protowire.ConsumeFieldValue(id, kind, message)
		}
		if n < 0 {
			return errMalformed
		}
		message = message[n:]
		if err := visit(f); err != nil {
			return err
		}
	}
	return nil
}

// first gives the bytes of the last field of that id, which is what counts, and visits
// those of another one.
func first(message []byte, id, others protowire.Number, visit func(one, other []byte) error) error {
	var one []byte
	if err := each(message, func(f field) error {
		if f.id == id {
			one = f.bytes
		}
		return nil
	}); err != nil {
		return err
	}
	return each(message, func(f field) error {
		if f.id == others {
			return visit(one, f.bytes)
		}
		return nil
	})
}

// Take keeps the spans of a request of OpenTelemetry's trace service
// (ExportTraceServiceRequest).
func (s *Store) Take(request []byte) error {
	count := 0
	defer s.clean()
	return each(request, func(f field) error {
		if f.id != 1 {
			return nil
		}
		return first(f.bytes, 1, 2, func(resource, group []byte) error {
			return first(group, 1, 2, func(scope, span []byte) error {
				if count++; count > maxRequest {
					return errTooMany
				}
				return s.take(resource, scope, span)
			})
		})
	})
}

// take keeps a span. One that names no trace is left out.
func (s *Store) take(resource, scope, span []byte) error {
	var id TraceID
	if err := each(span, func(f field) error {
		if f.id == 1 && len(f.bytes) == len(id) {
			copy(id[:], f.bytes)
		}
		return nil
	}); err != nil {
		return err
	}
	if id == (TraceID{}) || s.full(id, len(resource)+len(scope)+len(span)) {
		return nil
	}
	out, err := decode(resource, scope, span)
	if err != nil {
		return err
	}
	data, err := json.Marshal(out)
	if err != nil {
		return err
	}
	s.add(id, data)
	return nil
}

// decoder reads one span.
type decoder struct{ parts int }

// room counts a part, and says whether the span may have it.
func (d *decoder) room() bool {
	d.parts++
	return d.parts <= maxParts
}

func decode(resource, scope, span []byte) (*Span, error) {
	d := &decoder{}
	out := &Span{Status: StatusOf("")}
	out.SpanContext = Context{TraceID: NoTrace, SpanID: NoSpan, TraceFlags: "01"}
	parent := ""
	err := each(span, func(f field) (err error) {
		switch f.id {
		case 1:
			out.SpanContext.TraceID = id(f.bytes, NoTrace)
		case 2:
			out.SpanContext.SpanID = id(f.bytes, NoSpan)
		case 3:
			out.SpanContext.TraceState = string(f.bytes)
		case 4:
			parent = id(f.bytes, NoSpan)
		case 5:
			out.Name = string(f.bytes)
		case 6:
			out.SpanKind = int(min(f.number, 5))
		case 7:
			out.StartTime = moment(f.number)
		case 8:
			out.EndTime = moment(f.number)
		case 9:
			out.Attributes, err = d.attribute(out.Attributes, f.bytes, &out.DroppedAttributes)
		case 10:
			out.DroppedAttributes += count(f.number)
		case 11:
			err = d.event(out, f.bytes)
		case 12:
			out.DroppedEvents += count(f.number)
		case 13:
			err = d.link(out, f.bytes)
		case 14:
			out.DroppedLinks += count(f.number)
		case 15:
			out.Status, err = status(f.bytes)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	out.Parent = Context{TraceID: NoTrace, SpanID: NoSpan, TraceFlags: "00"}
	if parent != "" && parent != NoSpan {
		out.Parent = Context{TraceID: out.SpanContext.TraceID, SpanID: parent, TraceFlags: "01"}
	}
	var ignored int
	if err := each(resource, func(f field) (err error) {
		if f.id == 1 {
			out.Resource, err = d.attribute(out.Resource, f.bytes, &ignored)
		}
		return err
	}); err != nil {
		return nil, err
	}
	return out, each(scope, func(f field) error {
		switch f.id {
		case 1:
			out.InstrumentationScope.Name = string(f.bytes)
		case 2:
			out.InstrumentationScope.Version = string(f.bytes)
		}
		out.InstrumentationLibrary = out.InstrumentationScope
		return nil
	})
}

// id gives an id in hexadecimal; none is the id of what is not there.
func id(b []byte, none string) string {
	if 2*len(b) != len(none) {
		return none
	}
	return hex.EncodeToString(b)
}

func moment(nanoseconds uint64) time.Time { return time.Unix(0, int64(nanoseconds)).UTC() }

func count(n uint64) int { return int(min(n, math.MaxInt32)) }

func status(message []byte) (Status, error) {
	s := StatusOf("")
	err := each(message, func(f field) error {
		switch {
		case f.id == 2:
			s.Description = string(f.bytes)
		case f.id == 3 && f.number == 1:
			s.Code = "Ok"
		case f.id == 3 && f.number == 2:
			s.Code = "Error"
		}
		return nil
	})
	return s, err
}

func (d *decoder) event(out *Span, message []byte) error {
	if !d.room() {
		out.DroppedEvents++
		return nil
	}
	var e Event
	err := each(message, func(f field) (err error) {
		switch f.id {
		case 1:
			e.Time = moment(f.number)
		case 2:
			e.Name = string(f.bytes)
		case 3:
			e.Attributes, err = d.attribute(e.Attributes, f.bytes, &e.DroppedAttributeCount)
		case 4:
			e.DroppedAttributeCount += count(f.number)
		}
		return err
	})
	out.Events = append(out.Events, e)
	return err
}

func (d *decoder) link(out *Span, message []byte) error {
	if !d.room() {
		out.DroppedLinks++
		return nil
	}
	l := Link{SpanContext: Context{TraceID: NoTrace, SpanID: NoSpan, TraceFlags: "01"}}
	err := each(message, func(f field) (err error) {
		switch f.id {
		case 1:
			l.SpanContext.TraceID = id(f.bytes, NoTrace)
		case 2:
			l.SpanContext.SpanID = id(f.bytes, NoSpan)
		case 3:
			l.SpanContext.TraceState = string(f.bytes)
		case 4:
			l.Attributes, err = d.attribute(l.Attributes, f.bytes, &l.DroppedAttributeCount)
		case 5:
			l.DroppedAttributeCount += count(f.number)
		}
		return err
	})
	out.Links = append(out.Links, l)
	return err
}

// attribute adds an attribute to a list, or counts it as dropped.
func (d *decoder) attribute(list []Attribute, message []byte, dropped *int) ([]Attribute, error) {
	if !d.room() {
		*dropped++
		return list, nil
	}
	var a Attribute
	var value []byte
	err := each(message, func(f field) error {
		switch f.id {
		case 1:
			a.Key = string(f.bytes)
		case 2:
			value = f.bytes
		}
		return nil
	})
	if err != nil {
		return list, err
	}
	a.Value, err = d.value(value)
	return append(list, a), err
}

// value reads a value. What is neither a scalar nor a list of some is said to be
// invalid, as BuildKit does.
func (d *decoder) value(message []byte) (Value, error) {
	v := Value{"STRING", "INVALID"}
	err := each(message, func(f field) (err error) {
		switch f.id {
		case 1:
			v = Value{"STRING", string(f.bytes)}
		case 2:
			v = Value{"BOOL", f.number != 0}
		case 3:
			v = Value{"INT64", int64(f.number)}
		case 4:
			n := math.Float64frombits(f.number)
			v = Value{"FLOAT64", n}
			if math.IsNaN(n) || math.IsInf(n, 0) {
				v = Value{"STRING", fmt.Sprint(n)} // JSON has no such numbers
			}
		case 5:
			v, err = d.list(f.bytes)
		}
		return err
	})
	return v, err
}

// list reads a list, as one of texts: buildx v0.37 ends with a panic where it reads
// lists of other types.
func (d *decoder) list(message []byte) (Value, error) {
	texts := []string{}
	err := each(message, func(f field) error {
		if f.id != 1 || !d.room() {
			return nil
		}
		text := ""
		err := each(f.bytes, func(f field) error {
			switch f.id {
			case 1:
				text = string(f.bytes)
			case 2:
				text = fmt.Sprint(f.number != 0)
			case 3:
				text = fmt.Sprint(int64(f.number))
			case 4:
				text = fmt.Sprint(math.Float64frombits(f.number))
			}
			return nil
		})
		texts = append(texts, text)
		return err
	})
	return Value{"STRINGSLICE", texts}, err
}
