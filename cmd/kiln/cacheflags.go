package main

import (
	"encoding/csv"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kiln-build/kiln/request"
)

// cacheFlags are the flags that name remote caches.
func cacheFlags() []cli.Flag {
	return []cli.Flag{
		listFlag("cache-from", "cache of other machines to look results up in: type=registry,ref=IMAGE, type=local,src=FOLDER, type=http,url=ADDRESS, type=s3,bucket=NAME,region=REGION, type=azblob,account_url=ADDRESS or type=gha, each [,verify=KEYFILE]; an image alone is a registry's; may be repeated"),
		listFlag("cache-to", "cache to add the results to: type=registry,ref=IMAGE, type=local,dest=FOLDER, type=http,url=ADDRESS, type=s3,bucket=NAME,region=REGION, type=azblob,account_url=ADDRESS, type=gha or type=inline, each [,mode=min|max][,compression=gzip|zstd][,mounts=true][,sign=KEYFILE][,ignore-error=false]; may be repeated"),
	}
}

// parseCaches reads --cache-from or --cache-to flags: comma-separated NAME=VALUE
// fields as in a CSV file, or the name of an image alone.
func parseCaches(flag string, values []string) ([]request.RemoteCache, error) {
	var out []request.RemoteCache
	for _, v := range values {
		c := request.RemoteCache{Attrs: map[string]string{}}
		fields, err := csv.NewReader(strings.NewReader(v)).Read()
		if err != nil {
			return nil, usagef("--%s %q: %v", flag, v, err)
		}
		if len(fields) == 1 && !strings.Contains(fields[0], "=") {
			c.Type, c.Attrs["ref"] = "registry", fields[0]
			if fields[0] == "inline" || slices.Contains(request.CacheTypes, fields[0]) {
				return nil, usagef("--%s %q: want type=%s", flag, v, fields[0])
			}
			out = append(out, c)
			continue
		}
		for _, f := range fields {
			name, value, ok := strings.Cut(f, "=")
			if !ok {
				return nil, usagef("--%s %q: %q is not NAME=VALUE", flag, v, f)
			}
			if name = strings.ToLower(strings.TrimSpace(name)); name == "type" {
				c.Type = value
			} else {
				c.Attrs[name] = value
			}
		}
		if c.Type == "" {
			return nil, usagef("--%s %q: a type is missing (type=registry for one)", flag, v)
		}
		out = append(out, c)
	}
	return out, nil
}
