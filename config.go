package kiln

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/worker/executor/userns"
)

// Config is the configuration file, in the keys that buildkitd.toml has for the
// same things.
type Config struct {
	// Root is the state folder, where no flag names one.
	Root string `toml:"root"`
	// Debug has a daemon print the calls that fail, as a log level of "debug" does.
	Debug bool      `toml:"debug"`
	Log   LogConfig `toml:"log"`
	// GRPC says where a daemon serves.
	GRPC GRPCConfig `toml:"grpc"`
	// ProxyNetwork has all builds ask for the proxy network (Request.ProxyNetwork).
	ProxyNetwork bool `toml:"proxyNetwork"`
	// Registry says how hosts are reached, by host name.
	Registry map[string]registry.HostConfig `toml:"registry"`
	Worker   struct {
		OCI WorkerConfig `toml:"oci"`
	} `toml:"worker"`
	DNS DNSConfig `toml:"dns"`
	// History says which records of builds a daemon keeps.
	History *HistoryConfig `toml:"history"`
	CDI     CDIConfig      `toml:"cdi"`
	// Cache says what is signed of caches that are shared with other machines.
	Cache CacheConfig `toml:"cache"`
	// Entitlements are those that clients of a daemon may ask for: "network.host",
	// "security.insecure", "device".
	Entitlements []string `toml:"insecure-entitlements"`
	// ProvenanceEnvDir has files of JSON with what each provenance is to say of this
	// machine; empty is /etc/kiln/provenance.d.
	ProvenanceEnvDir string `toml:"provenanceEnvDir"`
	// Frontends says which frontends the clients of a daemon may use.
	Frontends struct {
		Dockerfile FrontendConfig `toml:"dockerfile.v0"`
		Gateway    FrontendConfig `toml:"gateway.v0"`
		Exec       ExecConfig     `toml:"exec"`
	} `toml:"frontend"`

	// Unknown says which keys of the file nobody knows, and Ignored which ones kiln
	// has no use for: a line each.
	Unknown, Ignored []string `toml:"-"`
}

// LogConfig says what a daemon prints.
type LogConfig struct {
	// Level is "debug" or "trace", which mean the same, or anything else.
	Level string `toml:"level"`
}

// GRPCConfig says where a daemon serves.
type GRPCConfig struct {
	// Address are the addresses: unix:///PATH, tcp://HOST:PORT, fd://.
	Address []string `toml:"address"`
	// DebugAddress is one that Go's profiles are served at, on loopback.
	DebugAddress string `toml:"debugAddress"`
	// UID and GID are who sockets belong to; with GID, its members may connect too.
	UID *int `toml:"uid"`
	GID *int `toml:"gid"`
	TLS struct {
		Cert string `toml:"cert"`
		Key  string `toml:"key"`
		CA   string `toml:"ca"`
	} `toml:"tls"`
}

// FrontendConfig says who may use a frontend.
type FrontendConfig struct {
	// Enabled is on where it is nil.
	Enabled *bool `toml:"enabled"`
	// AllowedRepositories are those that frontends may be pulled from; none allows
	// all. It is for gateway.v0 alone.
	AllowedRepositories []string `toml:"allowedRepositories"`
}

// ExecConfig says which programs of the daemon's machine clients may use as frontends.
type ExecConfig struct {
	// Programs are their paths, as clients write them behind "exec:". They run as the
	// daemon's user and outside of any sandbox.
	Programs []string `toml:"programs"`
}

// WorkerConfig says how steps run.
type WorkerConfig struct {
	// Enabled must not be false: there is no other worker.
	Enabled *bool `toml:"enabled"`
	// MaxParallelism is how many steps run at once; 0 is four for each processor,
	// sixteen at least.
	MaxParallelism int `toml:"max-parallelism"`
	// Binary is an OCI runtime that runs steps in place of kiln's own; empty is kiln's own.
	Binary string `toml:"binary"`
	// CgroupParent is the cgroup that steps run below.
	CgroupParent string `toml:"defaultCgroupParent"`
	// GCConfig says what the state folder may take.
	GCConfig
}

// DNSConfig is what steps find in /etc/resolv.conf in place of the host's.
type DNSConfig struct {
	Nameservers   []string `toml:"nameservers"`
	SearchDomains []string `toml:"searchDomains"`
	Options       []string `toml:"options"`
}

// CDIConfig says where the devices are specified that builds may ask for.
type CDIConfig struct {
	// Disabled gives builds none.
	Disabled bool `toml:"disabled"`
	// AutoAllowed are devices and kinds that builds may have without being granted them.
	AutoAllowed []string `toml:"autoAllowed"`
	// SpecDirs are the folders; nil is /etc/cdi, /var/run/cdi and /etc/buildkit/cdi.
	SpecDirs []string `toml:"specDirs"`
}

// CacheConfig says which signatures remote caches have to have, and get, whoever
// names them in a build.
type CacheConfig struct {
	// Verify are files of public keys: of what a cache has is taken what one of them
	// has signed; none takes all.
	Verify []string `toml:"verify"`
	// Sign is the file of the private key that exports are signed with; it needs Verify.
	Sign string `toml:"sign"`
}

// HistoryConfig says which records of builds a daemon keeps. Without it those of
// the last 48 hours stay, and 50 whatever their age.
type HistoryConfig struct {
	// MaxAge is for how long records stay that are not among the newest MaxEntries.
	MaxAge Duration `toml:"maxAge"`
	// MaxEntries is how many stay whatever their age; 0 keeps no records at all.
	MaxEntries *int `toml:"maxEntries"`
}

// What BuildKit keeps where nothing is said.
const (
	defaultEntries = 50
	defaultAge     = 48 * time.Hour
)

// Off reports whether no records are to be kept.
func (c *HistoryConfig) Off() bool { return c != nil && c.MaxEntries != nil && *c.MaxEntries <= 0 }

// Bounds gives how many records stay whatever their age, and for how long others do.
func (c *HistoryConfig) Bounds() (entries int, age time.Duration) {
	if c == nil {
		return defaultEntries, defaultAge
	}
	if c.MaxEntries != nil {
		entries = *c.MaxEntries
	}
	return entries, c.MaxAge.Duration
}

// DefaultRoot is the state folder where none is named: the system's for root, the
// user's own otherwise.
func DefaultRoot() string {
	// Root of a user namespace is the user who made it.
	if _, nested := userns.IDs(); os.Geteuid() == 0 && !nested && os.Getenv("XDG_STATE_HOME") == "" {
		return "/var/lib/kiln"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "kiln")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprintf("kiln-%d", os.Getuid()))
	}
	return filepath.Join(home, ".local", "state", "kiln")
}

// LoadConfig reads the configuration file: path, which must be there, or else the
// first of the usual places that has one. It is for callers who need to know what it
// says before they open an engine.
func LoadConfig(path string) (Config, error) { return loadConfig(path) }

// loadConfig reads the configuration file: path, which must be there, or else the
// first of the usual places that has one.
func loadConfig(path string) (Config, error) {
	places := []string{path}
	if path == "" {
		places = nil
		if dir, err := os.UserConfigDir(); err == nil {
			places = append(places, filepath.Join(dir, "kiln", "kiln.toml"))
		}
		places = append(places, "/etc/kiln/kiln.toml")
	}
	var c Config
	for _, p := range places {
		data, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) && path == "" {
			continue
		}
		if err != nil {
			return c, fmt.Errorf("reading the configuration: %w", err)
		}
		if err := c.parse(data); err != nil {
			return c, configError(p, err)
		}
		// The reader that knows which keys there are.
		c.Registry, err = registry.LoadHosts(p)
		return c, err
	}
	return c, nil
}

// configError says in which line of the file the mistake is.
func configError(path string, err error) error {
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		row, _ := decode.Position()
		return fmt.Errorf("%s:%d: %w", path, row, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}
