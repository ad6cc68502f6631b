package frontend

import (
	"encoding/csv"
	"fmt"
	"strings"
)

// Attributes by which clients ask for attestations. The second one is for those
// that can set build arguments only; its rest is in capitals.
const (
	attestAttr = "attest:"
	attestArg  = "build-arg:BUILDKIT_ATTEST_"
)

// Attests gives the attestations that a request asks for: of each kind the fields
// that say how it is to be, where a field without a value has "". A kind that the
// request switches off is not in it.
func Attests(opts map[string]string) (map[string]map[string]string, error) {
	out := map[string]map[string]string{}
	for k, v := range opts {
		kind, ok := strings.CutPrefix(k, attestAttr)
		if !ok {
			if kind, ok = strings.CutPrefix(k, attestArg); !ok {
				continue
			}
		}
		kind = strings.ToLower(kind)
		fields, err := attestFields(v)
		if err != nil {
			return nil, fmt.Errorf("attest:%s=%s: %w", kind, v, err)
		}
		if _, off := fields["false"]; !off && fields["disabled"] != "true" {
			out[kind] = fields
		}
	}
	return out, nil
}

// attestFields reads "key=value,key=value".
func attestFields(value string) (map[string]string, error) {
	out := map[string]string{}
	if value == "" {
		return out, nil
	}
	fields, err := csv.NewReader(strings.NewReader(value)).Read()
	if err != nil {
		return nil, err
	}
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "=")
		out[k] = v
	}
	return out, nil
}
