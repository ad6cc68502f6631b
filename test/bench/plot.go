package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// A plot shows how seconds grow with a size, both on logarithmic axes: a line of
// slope one is cost in proportion.

type plot struct{ title, file string }

// point is a size and what it took.
type point struct{ x, y float64 }

// series is a line of a plot.
type series struct {
	name   string
	points []point
}

// plots draws the graphs of W12, a file for each shape and kind of solve.
func (r *results) plots(dir string) ([]plot, error) {
	var out []plot
	for _, shape := range shapes {
		for _, kind := range []string{"first", "hit"} {
			var lines []series
			for _, tool := range toolNames {
				s := series{name: tool}
				for _, n := range graphSizes {
					o, row := r.find(graphRow(shape.name, n, kind))
					if row != nil && !math.IsNaN(row.time(tool)) && !row.unended(tool) {
						s.points = append(s.points, point{float64(n) * o.Scale, row.time(tool)})
					}
				}
				if len(s.points) > 0 {
					lines = append(lines, s)
				}
			}
			if len(lines) == 0 {
				continue
			}
			p := plot{fmt.Sprintf("%s graphs of file operations, %s solve: seconds by vertices", shape.name, kind), fmt.Sprintf("graphs-%s-%s.svg", shape.name, kind)}
			if err := os.WriteFile(filepath.Join(dir, p.file), []byte(draw(p.title, lines)), 0o644); err != nil {
				return nil, err
			}
			out = append(out, p)
		}
	}
	return out, nil
}

// find gives a row and the outcome that it is of.
func (r *results) find(id string) (*outcome, *rowOutcome) {
	for _, o := range r.Workloads {
		for _, row := range o.Rows {
			if row.ID == id {
				return o, row
			}
		}
	}
	return nil, nil
}

var colours = []string{"#0072b2", "#d55e00", "#009e73"}

// draw makes an SVG of lines.
func draw(title string, lines []series) string {
	const width, height, left, bottom, top = 640, 400, 60, 350, 40
	minX, maxX, minY, maxY := math.Inf(1), math.Inf(-1), math.Inf(1), math.Inf(-1)
	for _, s := range lines {
		for _, p := range s.points {
			minX, maxX = min(minX, p.x), max(maxX, p.x)
			minY, maxY = min(minY, p.y), max(maxY, p.y)
		}
	}
	lowX, highX := math.Floor(math.Log10(minX)), math.Ceil(math.Log10(maxX*1.001))
	lowY, highY := math.Floor(math.Log10(minY)), math.Ceil(math.Log10(maxY*1.001))
	x := func(v float64) float64 { return left + (math.Log10(v)-lowX)/(highX-lowX)*(width-left-110) }
	y := func(v float64) float64 { return bottom - (math.Log10(v)-lowY)/(highY-lowY)*(bottom-top) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/><text x="%d" y="22" font-size="14">%s</text>`+"\n", width, height, left, title)
	for e := lowX; e <= highX; e++ {
		v := math.Pow(10, e)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n", x(v), top, x(v), bottom, x(v), bottom+18, v)
	}
	for e := lowY; e <= highY; e++ {
		v := math.Pow(10, e)
		fmt.Fprintf(&b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g s</text>`+"\n", left, y(v), width-110, y(v), left-6, y(v)+4, v)
	}
	for i, s := range lines {
		colour := colours[i%len(colours)]
		var path []string
		for _, p := range s.points {
			path = append(path, fmt.Sprintf("%.1f,%.1f", x(p.x), y(p.y)))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x(p.x), y(p.y), colour)
		}
		last := s.points[len(s.points)-1]
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/><text x="%.1f" y="%.1f" fill="%s">%s</text>`+"\n",
			strings.Join(path, " "), colour, x(last.x)+8, y(last.y)+4, colour, s.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
