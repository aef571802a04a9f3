//go:build kvc_static

package kvc

// #cgo pkg-config: kvc-static
import "C"
