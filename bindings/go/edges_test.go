package kvc

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// arguments returns arguments of a method that only its receiver could make fail in the package.
func arguments(t *testing.T, method reflect.Method) []reflect.Value {
	t.Helper()
	all := []reflect.Value{}
	for i := 1; i < method.Type.NumIn(); i++ {
		kind := method.Type.In(i)
		value := reflect.Zero(kind)
		switch value.Interface().(type) {
		case Tensor:
			value = reflect.ValueOf(kv(make([]float32, kvHeads*headDim), 1))
		case []int32:
			value = reflect.ValueOf([]int32{0})
		case []TokenFlags:
			value = reflect.ValueOf([]TokenFlags{0})
		}
		all = append(all, value)
	}
	return all
}

// call returns the error of a method: its last result.
func call(receiver any, method reflect.Method, arguments []reflect.Value) error {
	results := method.Func.Call(append([]reflect.Value{reflect.ValueOf(receiver)}, arguments...))
	err, _ := results[len(results)-1].Interface().(error)
	return err
}

func TestMethodsOfNilReturnAnError(t *testing.T) {
	for _, none := range []any{(*Cache)(nil), (*Device)(nil), (*Operator)(nil)} {
		kind := reflect.TypeOf(none)
		if kind.NumMethod() == 0 {
			t.Errorf("%v has no methods", kind)
		}
		for i := 0; i < kind.NumMethod(); i++ {
			method := kind.Method(i)
			if err := call(none, method, arguments(t, method)); !errors.Is(err, InvalidHandle) {
				t.Errorf("%s of a nil %v returns %v", method.Name, kind, err)
			}
		}
	}
	var none *Device
	_, err := NewCache(none, testDesc(), CausalDesc{})
	is(t, err, InvalidHandle, "")
	_, err = MemoryBytes(none, testDesc(), CausalDesc{})
	is(t, err, InvalidHandle, "")
}

// The library counts in 32 bits, Go in 64: a number must not reach it as another one.
func TestNumbersBeyond32BitsAreRefusedWithTheirValue(t *testing.T) {
	cache, tried := open(t), 0
	kind := reflect.TypeOf(cache)
	for i := 0; i < kind.NumMethod(); i++ {
		method := kind.Method(i)
		for at, argument := range arguments(t, method) {
			if argument.Kind() != reflect.Int {
				continue
			}
			for _, n := range []int{1 << 31, 1 << 40, -1<<31 - 1} {
				tried++
				with := arguments(t, method)
				with[at] = reflect.ValueOf(n)
				err := call(cache, method, with)
				if !errors.Is(err, InvalidArgument) || !strings.Contains(err.Error(), fmt.Sprint(" ", n, " ")) {
					t.Errorf("%s with argument %d = %d returns %v", method.Name, at, n, err)
				}
			}
		}
	}
	if tried < 3*20 {
		t.Errorf("only %d calls were tried", tried)
	}
	_, err := OpenDevice("cpu", DeviceOptions{NThreads: 1 << 32})
	is(t, err, InvalidArgument, "NThreads 4294967296")
}
