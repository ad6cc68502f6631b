package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/frontend/dockerfile"
	"github.com/kiln-build/kiln/request"
	"github.com/moby/buildkit/solver/pb"
)

// question is a --call: what is asked of the build description, and how the answer
// is printed. The zero question asks nothing: it is a build.
type question struct {
	name         string // as the frontend knows it
	json         bool
	ignoreStatus bool // end with 0, whatever a check found
}

// question reads --call and --check.
func (o *buildOptions) question() (question, error) {
	var q question
	words := strings.Split(o.call, ",")
	for _, w := range words[1:] {
		key, value, given := strings.Cut(strings.TrimSpace(w), "=")
		switch {
		case key == "format" && (value == "json" || value == "text"):
			q.json = value == "json"
		case key == "ignorestatus" && !given:
			q.ignoreStatus = true
		case key == "ignorestatus":
			v, err := strconv.ParseBool(value)
			if err != nil {
				return q, usagef("--call %s: ignorestatus is true or false", o.call)
			}
			q.ignoreStatus = v
		default:
			return q, usagef("--call %s: %q is neither format=json, format=text nor ignorestatus", o.call, w)
		}
	}
	name := words[0]
	if o.check {
		if name != "" && name != "build" && name != "check" {
			return q, usagef("--check and --call %s: give one of them", o.call)
		}
		name = "check"
	}
	switch name {
	case "", "build":
	case "check", "lint":
		q.name = "lint"
	case "outline", "targets", "subrequests.describe":
		q.name = name
	default:
		return q, usagef("--call %s: the calls are build, check, outline and targets", o.call)
	}
	return q, nil
}

// answer prints what the frontend answered. A check that found something ends
// with the code that the frontend gives.
func (q question) answer(out io.Writer, r *request.Result) error {
	if q.json {
		fmt.Fprintln(out, r.Metadata["result.json"])
	}
	var err error
	switch {
	case q.name == "lint":
		err = q.answerCheck(out, r)
	case !q.json:
		fmt.Fprint(out, r.Metadata["result.txt"])
	}
	if err != nil || q.ignoreStatus {
		return err
	}
	if code, err := strconv.Atoi(r.Metadata["result.statuscode"]); err == nil && code != 0 {
		return statusError(code)
	}
	return nil
}

// findings is what is read of the answer to a check.
type findings struct {
	Warnings []json.RawMessage `json:"warnings"`
	Sources  []*pb.SourceInfo  `json:"sources"`
	Error    *struct {
		Message  string      `json:"message"`
		Location pb.Location `json:"location"`
	} `json:"buildError"`
}

// answerCheck prints what a check found. A Dockerfile that cannot be compiled is
// the command's error.
func (q question) answerCheck(out io.Writer, r *request.Result) error {
	var found findings
	if err := json.Unmarshal([]byte(r.Metadata["result.json"]), &found); err != nil {
		return fmt.Errorf("reading the answer of the frontend: %w", err)
	}
	if !q.json {
		switch n := len(found.Warnings); {
		case n == 1:
			fmt.Fprintln(out, "Check complete, 1 warning has been found!")
		case n > 1:
			fmt.Fprintf(out, "Check complete, %d warnings have been found!\n", n)
		case found.Error == nil:
			fmt.Fprintln(out, "Check complete, no warnings found.")
		}
		fmt.Fprint(out, r.Metadata["result.txt"])
	}
	if found.Error == nil {
		return nil
	}
	var file *pb.SourceInfo
	if i := int(found.Error.Location.SourceIndex); i >= 0 && i < len(found.Sources) {
		file = found.Sources[i]
	}
	return dockerfile.Received(nil, found.Error.Message, file, found.Error.Location.Ranges)
}
