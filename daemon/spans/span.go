package spans

import "time"

// Span is a span as clients read it, in the form that OpenTelemetry's Go packages
// give it.
type Span struct {
	Name                 string
	SpanContext, Parent  Context
	SpanKind             int
	StartTime, EndTime   time.Time
	Attributes           []Attribute
	Events               []Event
	Links                []Link
	Status               Status
	DroppedAttributes    int
	DroppedEvents        int
	DroppedLinks         int
	ChildSpanCount       int
	Resource             []Attribute
	InstrumentationScope Scope
	// InstrumentationLibrary is the scope by its older name, which is the one that
	// buildx reads.
	InstrumentationLibrary Scope
}

// The kinds of spans that the daemon makes.
const (
	KindInternal = 1
	KindServer   = 2
)

// Context names a span.
type Context struct {
	TraceID, SpanID, TraceFlags, TraceState string
	Remote                                  bool
}

// NoTrace and NoSpan are the ids of what is not there.
const (
	NoTrace = "00000000000000000000000000000000"
	NoSpan  = "0000000000000000"
)

// Status is how a span ended.
type Status struct{ Code, Description string }

// StatusOf gives the status of what ended with that error; "" is none.
func StatusOf(failure string) Status {
	if failure == "" {
		return Status{Code: "Unset"}
	}
	return Status{Code: "Error", Description: failure}
}

// Scope is what of a program made a span.
type Scope struct{ Name, Version, SchemaURL string }

// Event is something that happened in a span.
type Event struct {
	Name                  string
	Attributes            []Attribute
	DroppedAttributeCount int
	Time                  time.Time
}

// Link is another span that one has to do with.
type Link struct {
	SpanContext           Context
	Attributes            []Attribute
	DroppedAttributeCount int
}

// Attribute is a value that has a name.
type Attribute struct {
	Key   string
	Value Value
}

// Value is one of a type that Type names.
type Value struct{ Type, Value any }

// Text makes an attribute of a text.
func Text(key, value string) Attribute { return Attribute{key, Value{"STRING", value}} }

// Flag makes an attribute that holds or does not.
func Flag(key string, value bool) Attribute { return Attribute{key, Value{"BOOL", value}} }

// Number makes an attribute of a number.
func Number(key string, value int64) Attribute { return Attribute{key, Value{"INT64", value}} }
