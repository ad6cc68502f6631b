package gateway

import (
	"bytes"
	"fmt"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/frontend"
)

// Keys of what is said of an attestation, with BuildKit's names.
const (
	attestationReason = "reason"
	attestationCore   = "sbom-core"
	attestationInline = "inline-only"
)

// reasonSBOM is why there is an attestation that lists what an image holds.
const reasonSBOM = "sbom"

// maxAttestations bounds what one result may have said of it.
const maxAttestations = 1000

// decodeAttestations reads what a function says of its images.
func (f *Function) decodeAttestations(out *frontend.Result, said map[string]*gwpb.Attestations) error {
	for i := range out.Images {
		image := &out.Images[i]
		all := said[image.Name()].GetAttestation()
		if len(all) > maxAttestations {
			return fault.New(codes.ResourceExhausted, fmt.Sprintf("the result has more than %d attestations", maxAttestations))
		}
		for _, a := range all {
			decoded, err := f.decodeAttestation(a)
			if err != nil {
				return err
			}
			image.Attestations = append(image.Attestations, decoded)
		}
	}
	return nil
}

func (f *Function) decodeAttestation(a *gwpb.Attestation) (frontend.Attestation, error) {
	invalid := func(what string) (frontend.Attestation, error) {
		return frontend.Attestation{}, fault.New(codes.InvalidArgument, what)
	}
	switch {
	case a == nil:
		return invalid("an empty attestation")
	case a.Kind != gwpb.AttestationKind_InToto && a.Kind != gwpb.AttestationKind_Bundle:
		return invalid(fmt.Sprintf("unknown attestation kind %q", a.Kind))
	case a.Ref.GetId() == "" && a.Kind == gwpb.AttestationKind_Bundle:
		return invalid("no ref provided for attestation bundle")
	case a.Ref.GetId() == "":
		return invalid("attestation does not have available content")
	case a.Kind == gwpb.AttestationKind_InToto && a.Path == "":
		return invalid("attestation does not have set path")
	}
	r, err := f.lookup(a.Ref.Id)
	if err != nil {
		return frontend.Attestation{}, err
	}
	out := frontend.Attestation{
		Root: r.edge, Path: a.Path, Bundle: a.Kind == gwpb.AttestationKind_Bundle, PredicateType: a.InTotoPredicateType,
		SBOMCore: string(a.Metadata[attestationCore]), InlineOnly: bytes.Equal(a.Metadata[attestationInline], []byte("true")),
	}
	for _, s := range a.InTotoSubjects {
		if s == nil {
			return invalid("an empty attestation subject")
		}
		subject := frontend.Subject{Raw: s.Kind == gwpb.InTotoSubjectKind_Raw, Name: s.Name}
		if !subject.Raw && s.Kind != gwpb.InTotoSubjectKind_Self {
			return invalid(fmt.Sprintf("unknown attestation subject type %s", s.Kind))
		}
		for _, d := range s.Digest {
			if err := digest.Digest(d).Validate(); err != nil {
				return invalid(fmt.Sprintf("attestation subject %s: %v", s.Name, err))
			}
			subject.Digests = append(subject.Digests, d)
		}
		out.Subjects = append(out.Subjects, subject)
	}
	return out, nil
}

// encodeAttestations gives what is said of a result's images as gateway clients have it.
func (f *Function) encodeAttestations(r *frontend.Result) (map[string]*gwpb.Attestations, error) {
	var out map[string]*gwpb.Attestations
	for _, image := range r.Images {
		for _, a := range image.Attestations {
			ref, err := f.refer(a.Root, image.Call)
			if err != nil {
				return nil, err
			}
			p := &gwpb.Attestation{Ref: ref, Path: a.Path, InTotoPredicateType: a.PredicateType, Metadata: map[string][]byte{}}
			if a.Bundle {
				p.Kind = gwpb.AttestationKind_Bundle
			}
			if a.SBOMCore != "" {
				p.Metadata[attestationReason], p.Metadata[attestationCore] = []byte(reasonSBOM), []byte(a.SBOMCore)
			}
			if a.InlineOnly {
				p.Metadata[attestationInline] = []byte("true")
			}
			for _, s := range a.Subjects {
				sub := &gwpb.InTotoSubject{Name: s.Name, Digest: s.Digests}
				if s.Raw {
					sub.Kind = gwpb.InTotoSubjectKind_Raw
				}
				p.InTotoSubjects = append(p.InTotoSubjects, sub)
			}
			id := image.Name()
			if out == nil {
				out = map[string]*gwpb.Attestations{}
			}
			if out[id] == nil {
				out[id] = &gwpb.Attestations{}
			}
			out[id].Attestation = append(out[id].Attestation, p)
		}
	}
	return out, nil
}

// chainOf gives what is said of an image as gateway clients have it. Signatures are
// not looked for.
func chainOf(a *frontend.Attested) *gwpb.AttestationChain {
	if a == nil {
		return nil
	}
	out := &gwpb.AttestationChain{Root: a.Root, ImageManifest: a.Image, AttestationManifest: a.Manifest, Blobs: map[string]*gwpb.Blob{}}
	for _, b := range a.Blobs {
		out.Blobs[b.Digest] = &gwpb.Blob{
			Descriptor_: &gwpb.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: int64(len(b.Data)), Annotations: b.Annotations},
			Data:        b.Data,
		}
	}
	return out
}
