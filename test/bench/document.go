package main

func (r *results) document(dir string) error { return nil }
