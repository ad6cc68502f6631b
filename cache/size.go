package cache

// measure gives what the folder takes.
func (c *Cache) measure() (int64, error) { return c.DiskUsage() }

// narrow gives back what folders take that had many more entries once.
func (c *Cache) narrow() error { return c.pool.Narrow() }
