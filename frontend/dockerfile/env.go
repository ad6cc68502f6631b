package dockerfile

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// cutEnv splits "KEY=value".
func cutEnv(kv string) (key, value string) {
	key, value, _ = strings.Cut(kv, "=")
	return key, value
}

// env is ENV: variables for the steps that follow, and for the image.
func (l *line) env(c *instructions.EnvCommand) error {
	created := "ENV"
	for _, e := range c.Env {
		l.checkLegacyForm(c, e)
		l.checkSecretKey("ENV", e.Key)
		created += " " + e.String()
		l.stage.state.env.set(e.Key, e.Value)
		setEnv(l.stage.state.image, e.Key, e.Value)
	}
	l.commit(created, false)
	return nil
}

func (l *line) checkLegacyForm(c instructions.Command, kv instructions.KeyValuePair) {
	if kv.NoDelim {
		l.lint.Run(&linter.RuleLegacyKeyValueFormat, c.Location(), linter.RuleLegacyKeyValueFormat.Format(c.Name()))
	}
}

// arg is ARG: variables for the steps that follow, and not for the image.
func (l *line) arg(c *instructions.ArgCommand) error {
	st := &l.stage.state
	created := make([]string, 0, len(c.Args))
	for _, arg := range c.Args {
		l.checkSecretKey("ARG", arg.Key)
		inherited, err := l.argValue(&arg)
		if err != nil {
			return err
		}
		text := arg.Key
		if arg.Value != nil {
			if !isScanArg(arg.Key) {
				st.env.set(arg.Key, *arg.Value)
			}
			text += "=" + *arg.Value
		}
		if !inherited {
			l.stage.outline.define(argInfo{key: arg.Key, value: arg.ValueString(), comment: arg.DocComment, location: c.Location()})
		}
		l.stage.outline.useKey(arg.Key)
		st.args = append(st.args, arg)
		created = append(created, text)
	}
	l.commit("ARG "+strings.Join(created, " "), false)
	return nil
}

// argValue finds an argument's value: what the request gives, the default, or what
// the ARG of that name in front of the first FROM has (inherited).
func (l *line) argValue(arg *instructions.KeyValuePairOptional) (inherited bool, err error) {
	if v, ok := l.buildArgs[arg.Key]; ok {
		arg.Value = &v
		return false, nil
	}
	if arg.Value == nil {
		if v, ok := l.globals.env.Get(arg.Key); ok {
			arg.Value = &v
			return true, nil
		}
		return false, nil
	}
	v, err := l.expandWord(l.lex, *arg.Value)
	if err != nil {
		return false, err
	}
	arg.Value = &v
	return false, nil
}
