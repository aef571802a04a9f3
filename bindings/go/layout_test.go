package kvc

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unsafe"
)

// golden reads the lines of tests/abi/layout.txt and experimental.txt that begin with a word.
func golden(t *testing.T, kind string) (lines [][]string) {
	t.Helper()
	repository := filepath.Join("..", "..")
	if _, err := os.Stat(filepath.Join(repository, "capi", "kvc.map")); err != nil {
		t.Skip("outside the repository: ", err)
	}
	for _, name := range []string{"layout.txt", "experimental.txt"} {
		file, err := os.Open(filepath.Join(repository, "tests", "abi", name))
		if err != nil {
			t.Fatal(err)
		}
		for scanner := bufio.NewScanner(file); scanner.Scan(); {
			if words := strings.Fields(scanner.Text()); len(words) > 1 && words[0] == kind {
				lines = append(lines, words[1:])
			}
		}
		file.Close()
	}
	if len(lines) == 0 {
		t.Fatalf("the lists have no %s", kind)
	}
	return lines
}

func TestStructsAreAsGolden(t *testing.T) {
	mirrored := sizes()
	// What C calls a caller's operator with, and what a patch version may change.
	const left = "|kvc_operator_call|kvc_operator_functions|kvc_device_info|"
	for _, words := range golden(t, "struct") {
		if strings.Contains(left, "|"+words[0]+"|") {
			continue
		}
		if got, want := fmt.Sprint(mirrored[words[0]]), words[2]; got != want {
			t.Errorf("%s has size %s, not %s", words[0], got, want)
		}
	}
	if size := unsafe.Sizeof(StateSequence{}); int(size) != mirrored["kvc_state_sequence"] {
		t.Errorf("StateSequence has size %d; StateLayout hands its memory to C", size)
	}
	if size := unsafe.Sizeof(Run{}); int(size) != mirrored["kvc_run"] {
		t.Errorf("Run has size %d; Runs hands its memory to C", size)
	}
}

// C fills in slices of these structs.
func TestFieldsAreAsGolden(t *testing.T) {
	offsets := map[string]uintptr{}
	for name, kind := range map[string]reflect.Type{
		"kvc_run": reflect.TypeOf(Run{}), "kvc_state_sequence": reflect.TypeOf(StateSequence{}),
	} {
		for i := 0; i < kind.NumField(); i++ {
			words := regexp.MustCompile("[A-Z][a-z]*").ReplaceAllString(kind.Field(i).Name, "_$0")
			words = strings.TrimPrefix(strings.ToLower(words), "_")
			offsets[name+"."+words] = kind.Field(i).Offset
		}
	}
	found := 0
	for _, words := range golden(t, "field") {
		offset, mirrored := offsets[words[0]]
		if !mirrored {
			continue
		}
		found++
		if fmt.Sprint(offset) != words[2] {
			t.Errorf("%s has offset %d, not %s", words[0], offset, words[2])
		}
	}
	if found != len(offsets) {
		t.Errorf("of the fields %v the lists have %d", offsets, found)
	}
}

func TestConstantsAreAsGolden(t *testing.T) {
	mirrored := map[string]int64{
		"OK": 0, "F32": int64(F32), "F16": int64(F16), "BF16": int64(BF16), "BOOL": int64(Bool8),
		"F64": int64(F64), "I32": int64(I32), "I8": int64(I8), "U8": int64(U8), "F8_E4M3": int64(F8E4M3),
		"F8_E5M2": int64(F8E5M2), "Q8_0": int64(Q8_0), "Q4_0": int64(Q4_0), "INT8": int64(INT8), "NF4": int64(NF4),
		"SEQ_END": SeqEnd, "NONE": None,
		"CACHE_STRICT": int64(Strict), "CACHE_ZERO_ON_FREE": int64(ZeroOnFree), "CACHE_PREFAULT": int64(Prefault),
		"CACHE_ROTATE_K": int64(RotateK), "CACHE_ROTATE_V": int64(RotateV),
		"CACHE_INTERLEAVED": int64(Interleaved), "CACHE_V_IN_K": int64(VInK),
		"TOKEN_SEES_LATER": int64(SeesLater), "TOKEN_ENCODER_INPUT": int64(CarriesInput), "TOKEN_MASKED": int64(Masked),
		"SLOPES_ALIBI": int64(SlopesALiBi), "SLOPES_LIGHTNING2": int64(SlopesLightning2),
		"SLOPES_MINIMAX": int64(SlopesMiniMax), "SLOPES_LINEAR": int64(SlopesLinear), "MODE_ALL": int64(ModeAll),
		"PART_CONV": int64(Conv), "PART_RECURRENT": int64(Recurrent), "TOKEN_TYPE_SHIFT": tokenTypeShift, "ROPE_NEIGHBOURS": int64(Neighbours), "ROPE_HALVES": int64(Halves),
		"STATE_IDLE": int64(Idle), "STATE_PASS": int64(InPass), "STATE_RESERVE": int64(Reserve),
		"STATE_POISONED": int64(Poisoned),
	}
	statuses := []Status{
		InvalidArgument, InvalidHandle, OutOfMemory, NotSupported, BadState, Busy, Shape, Dtype, Overflow, Version,
		CacheFull, WindowLost, NotFound, InvalidRecurrentShape, DeviceFailure, DeviceMismatch, BackendUnavailable, IO,
		Corrupt, Internal,
	}
	for _, status := range statuses {
		mirrored["E_"+status.String()] = int64(status)
	}
	for bit := 0; bit < 22; bit++ { // by their names: String must agree with the header
		mirrored["FEATURE_"+strings.ToUpper(Feature(1<<bit).String())] = 1 << bit
		mirrored["MODE_"+strings.ToUpper(Mode(1<<bit).String())] = 1 << bit
		mirrored["SET_"+strings.ToUpper(DTypeSet(1<<bit).String())] = 1 << bit
	}
	for name, feature := range map[string]Feature{
		"MASK": FeatureMask, "BIAS": FeatureBias, "WINDOW": FeatureWindow, "CHUNK": FeatureChunk,
		"NOT_CAUSAL": FeatureNotCausal, "SOFTCAP": FeatureSoftcap, "ALIBI": FeatureALiBi, "SINKS": FeatureSinks,
		"LSE": FeatureLSE, "WEIGHTS": FeatureWeights, "DROPOUT": FeatureDropout, "GROUPED": FeatureGrouped,
		"DIMS_DIFFER": FeatureDimsDiffer, "SHIFTED": FeatureShifted, "ROTATED": FeatureRotated,
		"TRANSFORMER": FeatureTransformer, "LIGHTNING": FeatureLightning, "FORWARD": FeatureForward,
		"BLOCK_Q": FeatureBlockQ, "BLOCK_K": FeatureBlockK, "BLOCK_B": FeatureBlockB, "SCAN": FeatureScan,
	} {
		equal(t, mirrored["FEATURE_"+name], int64(feature))
	}
	equal(t, []int64{mirrored["MODE_TRAIN"], mirrored["MODE_PREFILL"], mirrored["MODE_AUTOREGRESSIVE"], mirrored["MODE_INSERT"]},
		[]int64{int64(ModeTrain), int64(ModePrefill), int64(ModeAutoregressive), int64(ModeInsert)})
	// What the package sets itself, or what this version reserves for other kinds and calls.
	inside := "|CPU|CUDA|TENSOR_TRANSPOSED|CAUSAL|ENCODER|RECURRENT|WRAPPER|TRANSFORMER|LIGHTNING|" +
		"CAUSAL_POSITION_FREE|LIGHTNING_APPROXIMATE|LIGHTNING_HOST_CHECKPOINTS|LIGHTNING_FUSED|TRANSFORMER_RING|TRANSFORMER_NOT_CAUSAL|ROWS_RESERVE|ROWS_NOT_CAUSAL|ROWS_POSTPADDED|ROWS_REPLAY|" +
		"METADATA_NO_CAUSAL_MASK|METADATA_NO_ATTENTION_BIAS|OPERATOR_NO_SCAN|OPERATOR_REPLACE|" +
		"FORWARD_CAUSAL|FORWARD_DROPOUT|FORWARD_NO_SINKS|RECURRENT_APPROXIMATE|RECURRENT_HOST_CHECKPOINTS|MAX_CHILDREN|BEGIN_RESERVE|BEGIN_REPLAY|" +
		"SEQUENCE_APPROXIMATE|CODEC_ROTATE|EXTRA_DROPOUT|EXTRA_NO_SINKS|EXTRA_BY_POSITION|EXTRA_MASK_ALONE|MAX_DIMS|"
	for _, words := range golden(t, "constant") {
		name := strings.TrimPrefix(words[0], "KVC_")
		value, known := mirrored[name]
		if !known && !strings.Contains(inside, "|"+name+"|") {
			t.Errorf("%s is not mirrored", words[0])
		}
		if known && fmt.Sprint(value) != words[1] {
			t.Errorf("%s is %d, not %s", words[0], value, words[1])
		}
	}
}

func TestEveryFunctionIsReached(t *testing.T) {
	var text strings.Builder
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, "shim.h", "shim_rows.h", "shim_operators.h") {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(source)
	}
	// They would call back into Go while the library holds the cache, or serve what does; a patch version
	// may remove the last two.
	const left = "|kvc_bind_shift|kvc_operator_register|kvc_operator_unregister|kvc_call_mask|kvc_call_positions|" +
		"kvc_device_name|kvc_device_query|"
	for _, words := range golden(t, "function") {
		if !strings.Contains(left, "|"+words[0]+"|") && !strings.Contains(text.String(), words[0]+"(") {
			t.Errorf("%s is not reached", words[0])
		}
	}
}

func TestEveryStatusIsAnError(t *testing.T) {
	for _, words := range golden(t, "constant") {
		if !strings.HasPrefix(words[0], "KVC_E_") {
			continue
		}
		var number int32
		if _, err := fmt.Sscan(words[1], &number); err != nil {
			t.Fatal(err)
		}
		var err error = &Error{Status(number), "why"}
		if !errors.Is(err, Status(number)) || errors.Is(err, Status(-1000)) {
			t.Errorf("errors.Is does not find %s", words[0])
		}
		if want := strings.TrimPrefix(words[0], "KVC_E_") + ": why"; err.Error() != want {
			t.Errorf("%q is not %q", err, want)
		}
	}
}
