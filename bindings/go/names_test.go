package kvc

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

func TestTypesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for _, dtype := range []DType{F32, F16, BF16, Bool8, F64, I32, I8, U8, F8E4M3, F8E5M2, Q8_0, Q4_0, INT8, NF4} {
		seen[dtype.String()] = true
	}
	if len(seen) != 14 || !seen["bf16"] || !seen["q8_0"] {
		t.Errorf("names %v", seen)
	}
	if got := fmt.Sprint(DType(0x4d)); got != "DType(0x4d)" {
		t.Errorf("an unknown type is called %s", got)
	}
}

func TestFlagsAndStatesHaveNames(t *testing.T) {
	for _, test := range []struct {
		value fmt.Stringer
		want  string
	}{
		{Idle, "idle"}, {Poisoned, "poisoned"}, {State(9), "State(9)"},
		{Neighbours, "neighbours"}, {RopePairs(9), "RopePairs(9)"},
		{CacheFlags(0), "0x0"}, {Strict | Prefault, "strict|prefault"}, {VInK | 1<<40, "v_in_k|0x10000000000"},
		{SlopesMiniMax, "minimax"}, {SlopeFamily(9), "SlopeFamily(9)"}, {Masked | CarriesInput, "carries_input|masked"},
		{SeesLater, "sees_later"}, {CarriesInput, "carries_input"}, {TokenFlags(8), "0x8"},
		{TokenType(3), "type 3"}, {SeesLater | TokenType(65535), "sees_later|type 65535"}, {TokenType(1) | 8, "0x8|type 1"},
	} {
		if got := fmt.Sprint(test.value); got != test.want {
			t.Errorf("%s, not %s", got, test.want)
		}
	}
}

// Whoever prints a struct of this package reads words, not numbers.
func TestEveryTypeOfNumbersHasNames(t *testing.T) {
	numbers, named := map[string]bool{}, map[string]bool{}
	look := func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.TypeSpec:
			if of, ok := node.Type.(*ast.Ident); ok && strings.Contains(of.Name, "int") && node.Name.IsExported() {
				numbers[node.Name.Name] = true
			}
		case *ast.FuncDecl:
			if node.Recv != nil && node.Name.Name == "String" {
				named[fmt.Sprint(node.Recv.List[0].Type)] = true
			}
		}
		return true
	}
	sources, err := filepath.Glob("*.go")
	must(t, err)
	for _, source := range sources {
		file, err := parser.ParseFile(token.NewFileSet(), source, nil, 0)
		must(t, err)
		ast.Inspect(file, look)
	}
	if len(numbers) < 6 {
		t.Fatalf("only %v were found", numbers)
	}
	for name := range numbers {
		if !named[name] {
			t.Errorf("%s has no String", name)
		}
	}
}
