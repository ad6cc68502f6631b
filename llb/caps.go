package llb

import (
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
)

// known is the set of capabilities that LLB has; it is filled by package pb's init
// and only read.
var known = pb.Caps.CapSet(pb.Caps.All())

func knownCap(c string) bool { return known.Supports(apicaps.CapID(c)) == nil }

// caps lists what a builder must understand to run v, as BuildKit's client lists
// it, so that an older builder refuses what it would misread.
func caps(v *Vertex) map[string]bool {
	set := capSet{}
	switch o := v.op.Op.(type) {
	case *pb.Op_Source:
		set.source(o.Source)
	case *pb.Op_Exec:
		set.exec(o.Exec)
		set.when(v.meta.Resources != nil, pb.CapExecMetaLinuxResources)
	case *pb.Op_File:
		set.file(o.File)
	case *pb.Op_Merge:
		set.add(pb.CapMergeOp)
	case *pb.Op_Diff:
		set.add(pb.CapDiffOp)
	case *pb.Op_Passthrough:
		set.add(pb.CapPassthroughOp)
	case *pb.Op_Build:
		set.when(o.Build.Attrs[pb.AttrLLBDefinitionFilename] != "", pb.CapBuildOpLLBFileName)
	}
	set.when(v.meta.IgnoreCache, pb.CapMetaIgnoreCache)
	set.when(len(v.meta.Description) != 0 || v.meta.Name != "", pb.CapMetaDescription)
	set.when(v.meta.ExportCache != nil, pb.CapMetaExportCache)
	if len(set) == 0 {
		return nil
	}
	return set
}

type capSet map[string]bool

func (s capSet) add(c apicaps.CapID) { s[string(c)] = true }

func (s capSet) when(cond bool, c apicaps.CapID) {
	if cond {
		s.add(c)
	}
}

// schemeCaps says which capability a source of that scheme needs.
var schemeCaps = map[string]apicaps.CapID{
	"docker-image":      pb.CapSourceImage,
	"docker-image+blob": pb.CapSourceImageBlob,
	"oci-layout+blob":   pb.CapSourceImageBlob,
	"oci-layout":        pb.CapSourceOCILayout,
	"local":             pb.CapSourceLocal,
	"git":               pb.CapSourceGit,
	"http":              pb.CapSourceHTTP,
	"https":             pb.CapSourceHTTP,
}

// attrCaps says which capability an attribute of a source needs.
var attrCaps = map[string]apicaps.CapID{
	pb.AttrImageLayerLimit:  pb.CapSourceImageLayerLimit,
	pb.AttrImageChecksum:    pb.CapSourceImageChecksum,
	pb.AttrLocalUniqueID:    pb.CapSourceLocalUnique,
	pb.AttrLocalSessionID:   pb.CapSourceLocalSessionID,
	pb.AttrIncludePatterns:  pb.CapSourceLocalIncludePatterns,
	pb.AttrFollowPaths:      pb.CapSourceLocalFollowPaths,
	pb.AttrExcludePatterns:  pb.CapSourceLocalExcludePatterns,
	pb.AttrSharedKeyHint:    pb.CapSourceLocalSharedKeyHint,
	pb.AttrLocalDiffer:      pb.CapSourceLocalDiffer,
	pb.AttrMetadataTransfer: pb.CapSourceMetadataTransfer,

	pb.AttrKeepGitDir:               pb.CapSourceGitKeepDir,
	pb.AttrFullRemoteURL:            pb.CapSourceGitFullURL,
	pb.AttrAuthHeaderSecret:         pb.CapSourceGitHTTPAuth,
	pb.AttrAuthTokenSecret:          pb.CapSourceGitHTTPAuth,
	pb.AttrKnownSSHHosts:            pb.CapSourceGitKnownSSHHosts,
	pb.AttrMountSSHSock:             pb.CapSourceGitMountSSHSock,
	pb.AttrGitChecksum:              pb.CapSourceGitChecksum,
	pb.AttrGitSkipSubmodules:        pb.CapSourceGitSkipSubmodules,
	pb.AttrGitMTime:                 pb.CapSourceGitMTime,
	pb.AttrGitFetchByCommit:         pb.CapSourceGitFetchByCommit,
	pb.AttrGitBundle:                pb.CapSourceGitBundle,
	pb.AttrGitCheckoutBundle:        pb.CapSourceGitCheckoutBundle,
	pb.AttrGitSignatureVerifyPubKey: pb.CapSourceGitSignatureVerify,

	pb.AttrHTTPChecksum:              pb.CapSourceHTTPChecksum,
	pb.AttrHTTPPerm:                  pb.CapSourceHTTPPerm,
	pb.AttrHTTPUID:                   pb.CapSourceHTTPUIDGID,
	pb.AttrHTTPGID:                   pb.CapSourceHTTPUIDGID,
	pb.AttrHTTPAuthHeaderSecret:      pb.CapSourceHTTPAuth,
	pb.AttrHTTPSignatureVerifyPubKey: pb.CapSourceHTTPSignatureVerify,
}

func (s capSet) source(o *pb.SourceOp) {
	scheme, _, _ := strings.Cut(o.Identifier, "://")
	if c, ok := schemeCaps[scheme]; ok {
		s.add(c)
	}
	for a := range o.Attrs {
		if c, ok := attrCaps[a]; ok {
			s.add(c)
		}
		s.when(strings.HasPrefix(a, pb.AttrHTTPHeaderPrefix), pb.CapSourceHTTPHeader)
	}
	// The other modes may be ignored at no harm; this one is about security.
	s.when(o.Attrs[pb.AttrImageResolveMode] == pb.AttrImageResolveModeForcePull, pb.CapSourceImageResolveMode)
}

func (s capSet) exec(o *pb.ExecOp) {
	s.add(pb.CapExecMetaBase)
	s.when(o.Network != pb.NetMode_UNSET, pb.CapExecMetaNetwork)
	s.when(o.Security != pb.SecurityMode_SANDBOX, pb.CapExecMetaSecurity)
	s.when(o.Meta.ProxyEnv != nil, pb.CapExecMetaProxy)
	s.when(len(o.Meta.Ulimit) > 0, pb.CapExecMetaUlimit)
	s.when(o.Meta.CgroupParent != "", pb.CapExecMetaCgroupParent)
	s.when(len(o.Meta.ValidExitCodes) > 0, pb.CapExecValidExitCode)
	hasPath := slices.ContainsFunc(o.Meta.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") })
	s.when(!hasPath, pb.CapExecMetaSetsDefaultPath)
	s.when(len(o.CdiDevices) > 0, pb.CapExecMetaCDI)
	s.when(len(o.Secretenv) > 0, pb.CapExecSecretEnv)
	for _, m := range o.Mounts {
		s.when(m.Selector != "", pb.CapExecMountSelector)
		s.when(m.ContentCache != pb.MountContentCache_DEFAULT, pb.CapExecMountContentCache)
		switch m.MountType {
		case pb.MountType_BIND:
			s.add(pb.CapExecMountBind)
			s.when(m.Output == int64(pb.SkipOutput) && !m.Readonly, pb.CapExecMountBindReadWriteNoOutput)
		case pb.MountType_CACHE:
			s.add(pb.CapExecMountCache)
			s.add(pb.CapExecMountCacheSharing)
		case pb.MountType_TMPFS:
			s.add(pb.CapExecMountTmpfs)
			s.when(m.TmpfsOpt.GetSize() > 0, pb.CapExecMountTmpfsSize)
		case pb.MountType_SECRET:
			s.add(pb.CapExecMountSecret)
		case pb.MountType_SSH:
			s.add(pb.CapExecMountSSH)
		}
	}
}

func (s capSet) file(o *pb.FileOp) {
	s.add(pb.CapFileBase)
	for _, a := range o.Actions {
		switch a := a.Action.(type) {
		case *pb.FileAction_Copy:
			c := a.Copy
			s.when(len(c.IncludePatterns)+len(c.ExcludePatterns) > 0, pb.CapFileCopyIncludeExcludePatterns)
			s.when(len(c.RequiredPaths) > 0, pb.CapFileCopyRequiredPaths)
			s.when(c.AlwaysReplaceExistingDestPaths, pb.CapFileCopyAlwaysReplaceExistingDestPaths)
			s.when(c.ModeStr != "", pb.CapFileCopyModeStringFormat)
		case *pb.FileAction_Rm:
			s.when(a.Rm.AllowWildcard, pb.CapFileRmWildcard)
		case *pb.FileAction_Symlink:
			s.add(pb.CapFileSymlinkCreate)
		}
	}
}
