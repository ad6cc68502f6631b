package request

// What is asked of kiln's engine itself, as a Request.Call. Daemons that are no
// kiln refuse it.
const (
	// CallDryRun says what the build would do, and runs no step.
	CallDryRun = "dry-run"
	// CallExplain explains the build that the attribute AttrBuild names.
	CallExplain = "explain"
)

// Attributes of requests that are kiln's own. Frontends do not get to see them.
const (
	// AttrBuild is a build's name; in a result's metadata, that build's own.
	AttrBuild = "kiln.build"
	// AttrFailOnMiss is Request.FailOnMiss as a JSON list.
	AttrFailOnMiss = "kiln.fail-on-miss"
	// AttrExplain, whatever its value, is Request.Explain.
	AttrExplain = "kiln.explain"
)

// ExplanationKey is the key of a result's metadata under which the answers to
// CallDryRun and CallExplain are: an explain.Explanation as JSON.
const ExplanationKey = "kiln.explanation"

// OfEngine reports whether a call is of the engine itself, not of a frontend.
func OfEngine(call string) bool { return call == CallDryRun || call == CallExplain }
