package caller

import (
	"context"
	"fmt"

	"github.com/moby/buildkit/session/exporter"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// FindExporters asks the client, which has seen the result, what else to write it
// with. A client that has nothing to say to that names none.
func (c *Caller) FindExporters(ctx context.Context, metadata map[string][]byte, refs []string) ([]*exporter.ExporterRequest, error) {
	conn, err := c.get(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := exporter.NewExporterClient(conn.Conn()).FindExporters(conn.Context(ctx), &exporter.FindExportersRequest{Metadata: metadata, Refs: refs})
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking the client for its exporters: %w", err)
	}
	return resp.Exporters, nil
}

// FinalizeExport tells the client that all is written.
func (c *Caller) FinalizeExport(ctx context.Context, response map[string]string) error {
	conn, err := c.get(ctx)
	if err != nil {
		return err
	}
	_, err = exporter.NewExporterClient(conn.Conn()).FinalizeExport(conn.Context(ctx), &exporter.FinalizeExportRequest{ExporterResponse: response})
	if err != nil && !absent(err) {
		return fmt.Errorf("telling the client what was written: %w", err)
	}
	return nil
}

// absent reports whether an answer says that the client has no such service, or not now.
func absent(err error) bool {
	code := status.Code(err)
	return code == codes.Unimplemented || code == codes.Unavailable
}
