package gateway

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/frontend"
)

// Keys of a result's metadata, with BuildKit's names. The configs' are followed by
// a slash and the platform's ID where there are several platforms.
const (
	platformsKey  = "refs.platforms"
	configKey     = "containerimage.config"
	baseConfigKey = "containerimage.base.config"
)

// platformList is what the platforms are listed as.
type platformList struct {
	Platforms []listedPlatform
}

type listedPlatform struct {
	ID       string
	Platform ocispecs.Platform
}

// encode gives a frontend's result as gateway clients have it: one reference, or
// one for each platform.
func (f *Function) encode(r *frontend.Result) (*gwpb.Result, error) {
	out := &gwpb.Result{Metadata: maps.Clone(r.Metadata)}
	if out.Metadata == nil {
		out.Metadata = map[string][]byte{}
	}
	set := func(key, suffix string, value []byte) {
		if value != nil {
			out.Metadata[key+suffix] = value
		}
	}
	list, err := parsePlatforms(r.Metadata)
	if err != nil {
		return nil, err
	}
	if out.Attestations, err = f.encodeAttestations(r); err != nil {
		return nil, err
	}
	if !r.Index && len(r.Images) <= 1 {
		ref := &gwpb.Ref{}
		for _, image := range r.Images {
			var err error
			if ref, err = f.refer(image.Root, image.Call); err != nil {
				return nil, err
			}
			set(configKey, "", image.Config)
			set(baseConfigKey, "", image.BaseConfig)
		}
		out.Result = &gwpb.Result_Ref{Ref: ref}
		return out, nil
	}
	if len(list.Platforms) != len(r.Images) {
		return nil, fmt.Errorf("the frontend made %d images for %d platforms", len(r.Images), len(list.Platforms))
	}
	refs := map[string]*gwpb.Ref{}
	for _, image := range r.Images {
		id := image.Name()
		if refs[id], err = f.refer(image.Root, image.Call); err != nil {
			return nil, err
		}
		set(configKey, "/"+id, image.Config)
		set(baseConfigKey, "/"+id, image.BaseConfig)
	}
	out.Result = &gwpb.Result_Refs{Refs: &gwpb.RefMap{Refs: refs}}
	return out, nil
}

func parsePlatforms(metadata map[string][]byte) (list platformList, err error) {
	data, ok := metadata[platformsKey]
	if !ok {
		return list, nil
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return list, fault.New(codes.InvalidArgument, fmt.Sprintf("reading %s: %v", platformsKey, err))
	}
	if len(list.Platforms) == 0 {
		return list, fault.New(codes.InvalidArgument, "invalid empty platforms index for exporter")
	}
	for i, p := range list.Platforms {
		if p.ID == "" {
			return list, fault.New(codes.InvalidArgument, "invalid empty platform key for exporter")
		}
		if p.Platform.OS == "" || p.Platform.Architecture == "" {
			return list, fault.New(codes.InvalidArgument, fmt.Sprintf("invalid platform value %v for exporter", p.Platform))
		}
		list.Platforms[i].Platform = platforms.Normalize(p.Platform)
	}
	return list, nil
}

// unique gives the platforms without those that are listed again: of a platform that
// was asked for twice a function has one result.
func (l platformList) unique() platformList {
	seen := map[string]bool{}
	var out platformList
	for _, p := range l.Platforms {
		if !seen[p.ID] {
			seen[p.ID] = true
			out.Platforms = append(out.Platforms, p)
		}
	}
	return out
}

// decode reads the result that a function returned.
func (f *Function) decode(r *gwpb.Result) (*frontend.Result, error) {
	out := &frontend.Result{Metadata: r.Metadata}
	list, err := parsePlatforms(r.Metadata)
	if err != nil {
		return nil, err
	}
	list = list.unique()
	if out.Metadata == nil {
		out.Metadata = map[string][]byte{}
	}
	if err := f.decodeImages(out, r, list); err != nil {
		return nil, err
	}
	return out, f.decodeAttestations(out, r.Attestations)
}

// decodeImages reads the references of a result.
func (f *Function) decodeImages(out *frontend.Result, r *gwpb.Result, list platformList) error {
	switch res := r.Result.(type) {
	case *gwpb.Result_Ref:
		return f.decodeOne(out, res.Ref.GetId(), list)
	case *gwpb.Result_RefDeprecated:
		return f.decodeOne(out, res.RefDeprecated, list)
	case *gwpb.Result_Refs:
		ids := map[string]string{}
		for k, ref := range res.Refs.GetRefs() {
			ids[k] = ref.GetId()
		}
		return f.decodeMany(out, ids, list)
	case *gwpb.Result_RefsDeprecated:
		return f.decodeMany(out, res.RefsDeprecated.GetRefs(), list)
	}
	return nil
}

// decodeOne reads a result of one reference. An empty one without a config is no
// image: the answer to a question, which is in the metadata.
func (f *Function) decodeOne(out *frontend.Result, id string, list platformList) error {
	if len(list.Platforms) > 1 {
		return fault.New(codes.InvalidArgument, fmt.Sprintf("one result for %d platforms", len(list.Platforms)))
	}
	suffix := ""
	platform := platforms.Normalize(platforms.DefaultSpec())
	if len(list.Platforms) == 1 {
		suffix, platform = "/"+list.Platforms[0].ID, list.Platforms[0].Platform
	} else if p, ok := platformOf(out.Metadata[configKey]); ok {
		platform = p
	}
	return f.addImage(out, id, platform, suffix)
}

// decodeMany reads a result of a reference for each platform.
func (f *Function) decodeMany(out *frontend.Result, ids map[string]string, list platformList) error {
	if len(list.Platforms) == 0 && len(ids) > 0 {
		// Nobody can tell which is for which platform; there is nothing to export,
		// but they can be built.
		for _, id := range slices.Sorted(maps.Keys(ids)) {
			if err := f.addImage(out, ids[id], platforms.Normalize(platforms.DefaultSpec()), "/"+id); err != nil {
				return err
			}
		}
		out.Index = true
		return nil
	}
	if len(list.Platforms) != len(ids) {
		return fault.New(codes.InvalidArgument, fmt.Sprintf("number of platforms does not match references %d %d", len(list.Platforms), len(ids)))
	}
	for _, p := range list.Platforms {
		id, ok := ids[p.ID]
		if !ok {
			return fault.New(codes.InvalidArgument, fmt.Sprintf("failed to find ref for ID %s", p.ID))
		}
		if err := f.addImage(out, id, p.Platform, "/"+p.ID); err != nil {
			return err
		}
	}
	out.Index = true
	return nil
}

func (f *Function) addImage(out *frontend.Result, id string, platform ocispecs.Platform, suffix string) error {
	ref, err := f.lookup(id)
	if err != nil {
		return err
	}
	if ref.left {
		return fault.New(codes.InvalidArgument, "what a failed step left is no result: "+id)
	}
	image := frontend.ResultImage{
		Platform: platform, ID: strings.TrimPrefix(suffix, "/"), Root: ref.edge, Call: ref.call,
		Config: keyed(out.Metadata, configKey, suffix), BaseConfig: keyed(out.Metadata, baseConfigKey, suffix),
	}
	out.Images = append(out.Images, image)
	return nil
}

func keyed(metadata map[string][]byte, key, suffix string) []byte {
	if v, ok := metadata[key+suffix]; ok {
		return v
	}
	return metadata[key]
}

// platformOf reads the platform that an image config names.
func platformOf(config []byte) (ocispecs.Platform, bool) {
	var c ocispecs.Image
	if len(config) == 0 || json.Unmarshal(config, &c) != nil || c.OS == "" || c.Architecture == "" {
		return ocispecs.Platform{}, false
	}
	return platforms.Normalize(c.Platform), true
}
