package dockerfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/solver/pb"
)

// question is something that can be asked of a Dockerfile instead of building it;
// buildx asks with --call. Names, versions and forms are BuildKit's.
type question struct {
	Name        string       `json:"name"`
	Version     string       `json:"version"`
	Type        string       `json:"type"`
	Description string       `json:"description"`
	Opts        []namedEntry `json:"opts"`
	Inputs      []namedEntry `json:"inputs"`
	Metadata    []namedEntry `json:"metadata"`
	Refs        []namedEntry `json:"refs"`

	answer func(ctx context.Context, a asked) (document, error)
}

// asked is what a question is about.
type asked struct {
	file     *llb.File
	compiler *compiler
	findings *lintDoc // where the compiler's warnings go
}

type namedEntry struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

// document is an answer: it is marshalled as JSON, and printed for people.
type document interface{ print(w io.Writer) }

// questions lists what can be asked.
func questions() []question {
	answers := []namedEntry{{Name: "result.json"}, {Name: "result.txt"}}
	return []question{
		{
			Name: "frontend.outline", Version: "1.0.0", Type: "rpc",
			Description: "List all parameters current build target supports",
			Opts:        []namedEntry{{Name: "target", Description: "Target build stage"}},
			Metadata:    answers,
			answer:      answerOutline,
		},
		{
			Name: "frontend.targets", Version: "1.0.0", Type: "rpc",
			Description: "List all targets current build supports",
			Opts:        []namedEntry{},
			Metadata:    answers,
			answer:      answerTargets,
		},
		{
			Name: "frontend.lint", Version: "1.0.0", Type: "rpc",
			Description: "Lint a Dockerfile",
			Opts:        []namedEntry{},
			Metadata:    append(answers, namedEntry{Name: "result.statuscode"}),
			answer:      answerLint,
		},
		{
			Name: "frontend.subrequests.describe", Version: "1.0.0", Type: "rpc",
			Description: "List available subrequest types",
			Metadata:    answers,
			answer:      answerDescribe,
		},
	}
}

// answer answers a request that asks about the Dockerfile.
func answer(ctx context.Context, request string, file *llb.File, compilerFor compilerFunc) (*frontend.Result, error) {
	for _, q := range questions() {
		if q.Name != request {
			continue
		}
		findings := &lintDoc{}
		doc, err := q.answer(ctx, asked{file: file, compiler: compilerFor(nil, findings.add), findings: findings})
		if err != nil {
			return nil, err
		}
		dt, err := json.MarshalIndent(doc, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("answering %s: %w", request, err)
		}
		var text bytes.Buffer
		doc.print(&text)
		meta := map[string][]byte{"result.json": dt, "result.txt": text.Bytes(), "version": []byte(q.Version)}
		if l, ok := doc.(*lintDoc); ok {
			meta["result.statuscode"] = []byte(l.status())
		}
		return &frontend.Result{Metadata: meta}, nil
	}
	return nil, &UnsupportedError{Request: request}
}

func answerOutline(ctx context.Context, a asked) (document, error) {
	target, err := a.compiler.evaluate(ctx)
	if err != nil {
		return nil, err
	}
	doc := a.compiler.outlineOf(target)
	return &doc, nil
}

func (o *outlineDoc) print(w io.Writer) {
	if o.Name != "" || o.Description != "" {
		tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
		name := o.Name
		if name == "" {
			name = "(default)"
		}
		fmt.Fprintf(tw, "TARGET:\t%s\n", name)
		if o.Description != "" {
			fmt.Fprintf(tw, "DESCRIPTION:\t%s\n", o.Description)
		}
		tw.Flush()
		fmt.Fprintln(w)
	}
	var rows [][]string
	for _, a := range o.Args {
		rows = append(rows, []string{a.Name, a.Value, a.Description})
	}
	printTable(w, "BUILD ARG\tVALUE\tDESCRIPTION", rows)
	printTable(w, "SECRET\tREQUIRED", givenRows(o.Secrets))
	printTable(w, "SSH\tREQUIRED", givenRows(o.SSH))
}

func givenRows(list []givenDoc) (rows [][]string) {
	for _, g := range list {
		required := ""
		if g.Required {
			required = "true"
		}
		rows = append(rows, []string{g.Name, required})
	}
	return rows
}

func printTable(w io.Writer, head string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, head)
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	tw.Flush()
	fmt.Fprintln(w)
}

// targetsDoc lists the stages.
type targetsDoc struct {
	Targets []targetDoc `json:"targets"`
	Sources [][]byte    `json:"sources"`
}

type targetDoc struct {
	Name        string       `json:"name,omitempty"`
	Default     bool         `json:"default,omitempty"`
	Description string       `json:"description,omitempty"`
	Base        string       `json:"base,omitempty"`
	Platform    string       `json:"platform,omitempty"`
	Location    *pb.Location `json:"location,omitempty"`
}

func answerTargets(_ context.Context, a asked) (document, error) {
	file := a.file
	ast, err := parser.Parse(bytes.NewReader(file.Data))
	if err != nil {
		return nil, locate(file, err)
	}
	stages, _, err := instructions.Parse(ast.AST, linter.New(&linter.Config{}))
	if err != nil {
		return nil, locate(file, err)
	}
	doc := &targetsDoc{Sources: [][]byte{file.Data}}
	for i, s := range stages {
		doc.Targets = append(doc.Targets, targetDoc{
			Name:        s.Name,
			Default:     i == len(stages)-1,
			Description: s.DocComment,
			Base:        s.BaseName,
			Platform:    s.Platform,
			Location:    locationPB(s.Location),
		})
	}
	return doc, nil
}

func (t *targetsDoc) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprint(tw, "TARGET\tDESCRIPTION\n")
	for _, s := range t.Targets {
		name := s.Name
		if s.Default {
			name = strings.TrimSpace(name + " (default)")
		}
		fmt.Fprintf(tw, "%s\t%s\n", name, s.Description)
	}
	tw.Flush()
}

// lintDoc lists what the rules found.
type lintDoc struct {
	Warnings []lintWarning    `json:"warnings"`
	Sources  []*pb.SourceInfo `json:"sources"`
	Error    *lintError       `json:"buildError,omitempty"`
}

type lintWarning struct {
	RuleName    string       `json:"ruleName"`
	Description string       `json:"description,omitempty"`
	URL         string       `json:"url,omitempty"`
	Detail      string       `json:"detail,omitempty"`
	Location    *pb.Location `json:"location,omitempty"`
}

type lintError struct {
	Message  string       `json:"message"`
	Location *pb.Location `json:"location"`
}

func (d *lintDoc) add(rule, description, url, text string, at []parser.Range) {
	l := locationPB(at)
	if l == nil {
		l = &pb.Location{}
	}
	d.Warnings = append(d.Warnings, lintWarning{RuleName: rule, Description: description, URL: url, Detail: text, Location: l})
}

func (d *lintDoc) status() string {
	if len(d.Warnings) > 0 || d.Error != nil {
		return "1"
	}
	return "0"
}

// answerLint checks the target, or all stages where none is named. An error of the
// Dockerfile is part of the answer.
func answerLint(ctx context.Context, a asked) (document, error) {
	doc, file, c := a.findings, a.file, a.compiler
	doc.Sources = []*pb.SourceInfo{file.Info()}
	c.everyStage = c.opts.target == ""
	_, err := c.evaluate(ctx)
	if err == nil {
		err = c.findings.locate(file, c.lint.Error())
	}
	if err != nil {
		doc.Error = &lintError{Message: err.Error(), Location: &pb.Location{}}
		var e *Error
		if errors.As(err, &e) {
			doc.Error.Message = e.Message()
			for _, l := range e.Lines {
				doc.Error.Location.Ranges = append(doc.Error.Location.Ranges, &pb.Range{
					Start: &pb.Position{Line: int32(l.Start)}, End: &pb.Position{Line: int32(l.End)},
				})
			}
		}
	}
	sort.SliceStable(doc.Warnings, func(i, j int) bool { return before(doc.Warnings[i].Location, doc.Warnings[j].Location) })
	return doc, nil
}

func (d *lintDoc) print(w io.Writer) {
	for _, warning := range d.Warnings {
		fmt.Fprintf(w, "\nWARNING: %s", warning.RuleName)
		if warning.URL != "" {
			fmt.Fprintf(w, " - %s", warning.URL)
		}
		fmt.Fprintf(w, "\n%s\n", warning.Detail)
		printMarked(w, d.Sources[0], linesPB(warning.Location))
	}
}

// printMarked shows lines of a file in the form that people know from BuildKit's
// checks, and editors read: two lines around a line, one around several.
func printMarked(w io.Writer, src *pb.SourceInfo, marked []Lines) {
	if len(marked) == 0 {
		return
	}
	text := strings.Split(string(src.Data), "\n")
	first, last := marked[0].Start, marked[0].End
	for _, l := range marked {
		first, last = min(first, l.Start), max(last, l.End)
	}
	if first < 1 || first > len(text) {
		return
	}
	around := 1
	if first == last {
		around = 2
	}
	fmt.Fprintf(w, "%s:%d\n--------------------\n", src.Filename, first)
	for n := max(first-around, 1); n <= min(last+around, len(text)); n++ {
		mark := "   "
		if slices.ContainsFunc(marked, func(l Lines) bool { return n >= l.Start && n <= l.End }) {
			mark = ">>>"
		}
		fmt.Fprintf(w, " %3d | %s %s\n", n, mark, text[n-1])
	}
	fmt.Fprint(w, "--------------------\n")
}

func linesPB(l *pb.Location) (out []Lines) {
	for _, r := range l.GetRanges() {
		start, end := int(r.GetStart().GetLine()), int(r.GetEnd().GetLine())
		out = append(out, Lines{Start: start, End: max(start, end)})
	}
	return out
}

// describeDoc lists the questions.
type describeDoc []question

func answerDescribe(context.Context, asked) (document, error) {
	return describeDoc(questions()), nil
}

func (d describeDoc) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprint(tw, "NAME\tVERSION\tDESCRIPTION\n")
	for _, q := range d {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", strings.TrimPrefix(q.Name, "frontend."), q.Version, q.Description)
	}
	tw.Flush()
}
