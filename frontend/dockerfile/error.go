package dockerfile

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/solver/pb"
)

// Error is an error in what a Dockerfile says. Its text names the place, shows the
// lines, and ends with the hint.
type Error struct {
	// File is nil where the error is about no line of a file.
	File *llb.File
	// Lines says which lines the error is about: the instruction itself first, then
	// those that led to it, a FROM whose base has an ONBUILD for one.
	Lines []Lines
	// Hint says what to do, or is empty.
	Hint string
	Err  error
}

// Lines is a range of lines of a file, from 1.
type Lines struct{ Start, End int }

// Unwrap gives the error without its place.
func (e *Error) Unwrap() error { return e.Err }

// Error gives the whole text, of several lines where there is a place to show.
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != nil && len(e.Lines) > 0 {
		fmt.Fprintf(&b, "%s:%d: ", e.File.Name, e.Lines[0].Start)
	}
	b.WriteString(e.Err.Error())
	if x := e.Excerpt(); x != "" {
		b.WriteString("\n")
		b.WriteString(x)
	}
	if e.Hint != "" {
		b.WriteString("\n")
		b.WriteString(e.Hint)
	}
	return b.String()
}

// Message gives the text for clients that show the lines themselves: in the words of
// BuildKit, for which tools look, with the hint in brackets.
func (e *Error) Message() string {
	text := e.Err.Error()
	var r *reworded
	if errors.As(e.Err, &r) {
		text = parsePrefix.FindString(r.err.Error()) + text
	}
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// Received gives the error of a frontend elsewhere, which told of it in the words of
// Message, and of the lines beside them. err is what it came as, if not as text alone.
func Received(err error, text string, file *pb.SourceInfo, ranges []*pb.Range) *Error {
	if err == nil {
		err = errors.New(text)
	}
	text = parsePrefix.ReplaceAllString(text, "")
	e := &Error{}
	if m := suggestion.FindStringSubmatch(text); m != nil {
		text, e.Hint = m[1], m[2]
	}
	e.Err = &reworded{text: text, err: err}
	if file != nil {
		e.File = llb.NewFile(file)
	}
	for _, r := range ranges {
		first, last := int(r.GetStart().GetLine()), int(r.GetEnd().GetLine())
		e.Lines = append(e.Lines, Lines{Start: first, End: max(first, last)})
	}
	return e
}

// Excerpt shows the lines that the error is about, numbered and marked, with two
// lines around them.
func (e *Error) Excerpt() string {
	if e.File == nil || len(e.Lines) == 0 {
		return ""
	}
	return excerpt(e.File.Data, e.Lines)
}

const (
	excerptAround = 2   // lines shown before and after
	excerptLines  = 40  // shown at most
	excerptWidth  = 200 // bytes of a line
)

func excerpt(data []byte, marked []Lines) string {
	marked = joined(marked)
	text := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	isMarked := func(n int) bool {
		return slices.ContainsFunc(marked, func(l Lines) bool { return n >= l.Start && n <= l.End })
	}
	isNear := func(n int) bool {
		return slices.ContainsFunc(marked, func(l Lines) bool {
			return n >= l.Start-excerptAround && n <= l.End+excerptAround
		})
	}
	var out []string
	last := 0
	for i, line := range text {
		n := i + 1
		if !isNear(n) {
			continue
		}
		if len(out) == excerptLines {
			out = append(out, "     | ...")
			break
		}
		if last != 0 && n != last+1 {
			out = append(out, "     | ...")
		}
		last = n
		mark := " "
		if isMarked(n) {
			mark = ">"
		}
		if len(line) > excerptWidth {
			line = strings.ToValidUTF8(line[:excerptWidth], "") + "..."
		}
		out = append(out, strings.TrimRight(fmt.Sprintf("%s%4d | %s", mark, n, strings.TrimRight(line, "\r")), " "))
	}
	return strings.Join(out, "\n")
}

// joined makes one range of those that follow on each other: an instruction may have
// one for each of its lines.
func joined(list []Lines) []Lines {
	var out []Lines
	for _, l := range list {
		if n := len(out); n > 0 && l.Start >= out[n-1].Start && l.Start <= out[n-1].End+1 {
			out[n-1].End = max(out[n-1].End, l.End)
			continue
		}
		out = append(out, l)
	}
	return out
}

// parsePrefix is what the parser puts in front of its errors; the place is said
// once, by Error.
var parsePrefix = regexp.MustCompile(`dockerfile parse error on line \d+: `)

// suggestion is the hint that the parser puts in brackets.
var suggestion = regexp.MustCompile(`^(?s)(.*) \((did you mean [^)]*\?)\)$`)

// locate makes an *Error of err, which is about the file, at the place that err
// itself knows or else at ranges. Errors that have no place stay as they are.
func locate(file *llb.File, err error, ranges ...[]parser.Range) error {
	if err == nil {
		return nil
	}
	var done *Error
	if errors.As(err, &done) {
		return err
	}
	var loc *parser.LocationError
	if errors.As(err, &loc) {
		ranges = append(slices.Clone(loc.Locations), ranges...)
	}
	var lines []Lines
	for _, r := range ranges {
		if l, ok := linesOf(r); ok && !slices.Contains(lines, l) {
			lines = append(lines, l)
		}
	}
	if len(lines) == 0 {
		return err
	}
	e := &Error{File: file, Lines: lines, Err: err, Hint: hintOf(err)}
	text := parsePrefix.ReplaceAllString(err.Error(), "")
	// The end of the word stands in the brackets, which is no character.
	text = strings.Replace(text, "unsupported modifier (\uFFFD) in substitution", "missing } in substitution", 1)
	if m := suggestion.FindStringSubmatch(text); m != nil {
		text, e.Hint = m[1], m[2]
	}
	if strings.HasSuffix(text, "unterminated heredoc") {
		e.Hint = "a heredoc ends with a line that is its word alone"
		// It runs to the end of the file; where it begins is what helps.
		e.Lines[0].End = e.Lines[0].Start
	}
	var unknown *instructions.UnknownInstructionError
	if errors.As(err, &unknown) {
		if match, ok := nearestInstruction(unknown.Instruction); ok {
			e.Hint = "did you mean " + match + "?"
		}
	}
	if text != err.Error() {
		e.Err = &reworded{text: text, err: err}
	}
	return e
}

// reworded gives an error another text.
type reworded struct {
	text string
	err  error
}

func (r *reworded) Error() string { return r.text }
func (r *reworded) Unwrap() error { return r.err }

func linesOf(ranges []parser.Range) (Lines, bool) {
	var l Lines
	for _, r := range ranges {
		if l.Start == 0 || r.Start.Line < l.Start {
			l.Start = r.Start.Line
		}
		l.End = max(l.End, r.End.Line)
	}
	return l, l.Start > 0
}

// hinted adds a hint to an error.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// hintOf finds the hint that was added to an error.
func hintOf(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

// prefixed says what was being done when an error came up.
func prefixed(doing string, err error) error { return fmt.Errorf("%s: %w", doing, err) }
