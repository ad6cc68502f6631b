// Package attest puts attestations into the form in which they are written.
//
// An attestation is something that somebody says of an image: what it was built
// from, what is in it. It has a predicate, which is JSON, the URL of what kind of
// predicate that is, and subjects, which are digests and their names. The three
// together are a statement, as in-toto has them; the package image puts statements
// into a manifest beside the image's own, and those that write folders into files.
//
// A frontend names the files that predicates are in, or a folder of statements, a
// bundle. Read gives the predicates of both; Statement.Subject is filled by who
// knows what is written.
package attest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/opencontainers/go-digest"
)

const (
	// StatementType is the type of in-toto statements.
	StatementType = "https://in-toto.io/Statement/v1"
	// MediaType is that of a statement's bytes.
	MediaType = "application/vnd.in-toto+json"
	// SPDX is the predicate type of an SPDX document.
	SPDX = "https://spdx.dev/Document"
	// provenance begins the predicate types that only the engine may use: who
	// relies on them relies on the builder's word.
	provenance = "https://slsa.dev/provenance/"
)

// maxPredicate bounds the file that a predicate is read from, as BuildKit does.
const maxPredicate = 80 << 20

// Statement is an attestation as it is written.
type Statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []Subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Subject is what a statement is about.
type Subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// Predicate is an attestation whose content was read. Data is nil where the file is empty.
type Predicate struct {
	exporter.Attestation
	Data []byte
}

// Core reports whether it describes the image itself, not what went into it.
func (p Predicate) Core() bool {
	name, _, _ := strings.Cut(path.Base(p.Path), ".")
	return p.SBOMCore != "" && name == p.SBOMCore
}

// Needed leaves out the attestations that are for indexes only.
func Needed(all []exporter.Attestation) []exporter.Attestation {
	var out []exporter.Attestation
	for _, a := range all {
		if !a.InlineOnly {
			out = append(out, a)
		}
	}
	return out
}

// Read gives the predicates of attestations, those of the image itself first;
// blobs are what the image's layers were written as.
func Read(ctx context.Context, env exporter.Env, all []exporter.Attestation, blobs exporter.Blobs) ([]Predicate, error) {
	var read []Predicate
	for _, a := range all {
		var more []Predicate
		var err error
		if a.Bundle {
			more, err = unbundle(ctx, env, a)
		} else {
			more, err = one(ctx, env, a, blobs)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the attestation %s: %w", a.Path, err)
		}
		read = append(read, more...)
	}
	var first, rest []Predicate
	for _, p := range read {
		if p.Core() {
			first = append(first, p)
		} else {
			rest = append(rest, p)
		}
	}
	return append(first, rest...), nil
}

// one reads the predicate that is in a file, or that the engine writes.
func one(ctx context.Context, env exporter.Env, a exporter.Attestation, blobs exporter.Blobs) ([]Predicate, error) {
	if a.Path == "" {
		return nil, errors.New("attestation does not have set path")
	}
	if a.Content != nil {
		data, err := a.Content(ctx, blobs)
		return []Predicate{{a, data}}, err
	}
	if strings.HasPrefix(a.PredicateType, provenance) {
		return nil, errors.New("frontend may not set provenance attestations")
	}
	root, err := state(ctx, env, a)
	if err != nil {
		return nil, err
	}
	data, err := file(env, root, a.Path)
	if err == nil && len(data) > 0 && !json.Valid(data) {
		err = errors.New("the file is not JSON")
	}
	return []Predicate{{a, data}}, err
}

// unbundle reads the statements of a folder.
func unbundle(ctx context.Context, env exporter.Env, a exporter.Attestation) ([]Predicate, error) {
	root, err := state(ctx, env, a)
	if err != nil {
		return nil, err
	}
	dir, err := tree.Resolve(env.Cache, root, a.Path, true)
	if err != nil {
		return nil, err
	}
	if dir.Entry.Kind != tree.Dir {
		return nil, errors.New("a bundle has to be a folder")
	}
	var out []Predicate
	for e, err := range tree.ReadDir(env.Cache, dir.Entry.Children) {
		if err != nil {
			return nil, err
		}
		p, err := bundled(env, root, a, e.Name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// bundled reads one statement of a bundle.
func bundled(env exporter.Env, root tree.Entry, a exporter.Attestation, name string) (Predicate, error) {
	full := path.Join("/", a.Path, name)
	data, err := file(env, root, full)
	if err != nil {
		return Predicate{}, err
	}
	var s Statement
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&s); err != nil {
		return Predicate{}, fmt.Errorf("cannot decode in-toto statement: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Predicate{}, errors.New("in-toto statement is not a single JSON object")
	}
	switch {
	case a.PredicateType != "" && s.PredicateType != a.PredicateType:
		return Predicate{}, fmt.Errorf("bundle entry %s does not match required predicate type %s", s.PredicateType, a.PredicateType)
	case strings.HasPrefix(s.PredicateType, provenance):
		return Predicate{}, errors.New("frontend may not bundle provenance attestations")
	}
	p := Predicate{a, s.Predicate}
	p.Bundle, p.Path, p.PredicateType, p.Subjects = false, strings.TrimPrefix(full, "/"), s.PredicateType, nil
	for _, sub := range s.Subject {
		subject := exporter.Subject{Name: sub.Name, Raw: true}
		for alg, hex := range sub.Digest {
			subject.Digests = append(subject.Digests, digest.NewDigestFromEncoded(digest.Algorithm(alg), hex))
		}
		p.Subjects = append(p.Subjects, subject)
	}
	return p, nil
}

// state gives the file system that an attestation is read from.
func state(ctx context.Context, env exporter.Env, a exporter.Attestation) (tree.Entry, error) {
	if env.Source != nil {
		if err := env.Source.Unpack(ctx, a.Root); err != nil {
			return tree.Entry{}, err
		}
	}
	return env.Cache.Merged(a.Root)
}

// file reads a file of a state. Its links stay inside of the state.
func file(env exporter.Env, root tree.Entry, name string) ([]byte, error) {
	found, err := tree.Resolve(env.Cache, root, name, true)
	if err != nil {
		return nil, err
	}
	e := found.Entry
	switch {
	case e.Kind != tree.File:
		return nil, fmt.Errorf("%s is not a regular file", name)
	case e.Size > maxPredicate:
		return nil, fmt.Errorf("%s exceeds %d bytes", name, maxPredicate)
	case e.Size == 0:
		return nil, nil
	}
	f, err := env.Cache.Pool().Open(e)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, e.Size)
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, err
	}
	return data, nil
}

// Statement makes the statement of a predicate; self is what "the image" means.
func (p Predicate) Statement(self []Subject) Statement {
	s := Statement{Type: StatementType, PredicateType: p.PredicateType, Subject: []Subject{}, Predicate: p.Data}
	subjects := p.Subjects
	if len(subjects) == 0 {
		subjects = []exporter.Subject{{}}
	}
	for _, sub := range subjects {
		if sub.Raw {
			name := sub.Name
			if name == "" {
				name = "_"
			}
			s.Subject = append(s.Subject, Subject{name, digestSet(sub.Digests...)})
			continue
		}
		for _, own := range self {
			s.Subject = append(s.Subject, own)
			if sub.Name != "" && sub.Name != "_" {
				s.Subject = append(s.Subject, Subject{sub.Name, own.Digest})
			}
		}
	}
	return s
}

// Of gives a subject of one digest.
func Of(name string, d digest.Digest) Subject { return Subject{name, digestSet(d)} }

func digestSet(all ...digest.Digest) map[string]string {
	set := map[string]string{}
	for _, d := range all {
		if alg, hex, ok := strings.Cut(d.String(), ":"); ok {
			set[alg] = hex
		}
	}
	return set
}
