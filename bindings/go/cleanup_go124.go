//go:build go1.24

package kvc

import "runtime"

// whenForgotten destroys a handle whose owner was collected. After Close that finds a dead key and does nothing.
func whenForgotten[T, H any](owner *T, handle H, destroy func(H)) {
	runtime.AddCleanup(owner, destroy, handle)
}
