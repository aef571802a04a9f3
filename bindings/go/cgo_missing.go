//go:build !cgo

package kvc

// The one error of a build without cgo, which Go turns off where it finds no C compiler.
var _ int = "set CGO_ENABLED=1 and install a C compiler: kvc calls a C library"
