//go:build !go1.24

package kvc

import "runtime"

// whenForgotten destroys a handle whose owner was collected without Close. The result forgets that.
func whenForgotten[T, H any](owner *T, handle H, destroy func(H)) (stop func()) {
	runtime.SetFinalizer(owner, func(*T) { destroy(handle) })
	return func() { runtime.SetFinalizer(owner, nil) }
}
