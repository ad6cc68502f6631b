package main

import (
	"encoding/csv"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

// attestOptions are the flags that ask for attestations, as they were written.
type attestOptions struct {
	attest           []string
	provenance, sbom string
}

// attestFlags are the flags that ask for attestations.
func attestFlags(o *attestOptions) []cli.Flag {
	return []cli.Flag{
		listFlag("attest", "what to say of the image beside it: type=provenance[,mode=min|max][,version=v1|v0.2][,builder-id=URL][,reproducible=true] or type=sbom[,generator=IMAGE]; may be repeated"),
		&cli.StringFlag{Name: "provenance", Usage: "shorthand for --attest type=provenance: true, false, or its fields, mode=max for one", Destination: &o.provenance},
		&cli.StringFlag{Name: "sbom", Usage: "shorthand for --attest type=sbom: true, false, or its fields", Destination: &o.sbom},
	}
}

// attrs gives the attributes that the flags stand for.
func (o *attestOptions) attrs(attrs map[string]string) error {
	seen := map[string]bool{}
	add := func(flag, kind string, fields []string) error {
		if seen[kind] {
			return usagef("--%s: attestations of the type %s are asked for twice", flag, kind)
		}
		seen[kind] = true
		fields = slices.DeleteFunc(fields, func(f string) bool { return f == "disabled=false" })
		if slices.Contains(fields, "disabled=true") {
			return nil
		}
		var text strings.Builder
		w := csv.NewWriter(&text)
		if err := w.Write(fields); err != nil {
			return err
		}
		w.Flush()
		attrs["attest:"+kind] = strings.TrimSuffix(text.String(), "\n")
		return nil
	}
	for _, v := range o.attest {
		fields, err := csv.NewReader(strings.NewReader(v)).Read()
		if err != nil {
			return usagef("--attest %q: %v", v, err)
		}
		at := slices.IndexFunc(fields, func(f string) bool { return strings.HasPrefix(f, "type=") })
		if at < 0 {
			return usagef("--attest %q: a type is missing (type=provenance for one)", v)
		}
		kind := strings.TrimPrefix(fields[at], "type=")
		if kind != "provenance" && kind != "sbom" {
			return usagef("--attest %q: the types are provenance and sbom", v)
		}
		if err := add("attest", kind, slices.Delete(fields, at, at+1)); err != nil {
			return err
		}
	}
	for kind, v := range map[string]string{"provenance": o.provenance, "sbom": o.sbom} {
		if v == "" {
			continue
		}
		fields, err := csv.NewReader(strings.NewReader(v)).Read()
		if err != nil {
			return usagef("--%s %q: %v", kind, v, err)
		}
		if on, err := strconv.ParseBool(v); err == nil {
			fields = nil
			if !on {
				fields = []string{"disabled=true"}
			}
		}
		if err := add(kind, kind, fields); err != nil {
			return err
		}
	}
	return nil
}
