//! Compares the declarations with the golden lists of tests/abi: the constants, the structs with their
//! fields in the same places, the functions with their arguments. Mirrors are tested, not trusted.
#![allow(non_camel_case_types)]
use kvc_sys::*;
use std::collections::{BTreeMap, HashMap};
use std::mem::{align_of, size_of, MaybeUninit};
use std::path::Path;

const SOURCE: &str = concat!(
    include_str!("../src/constants.rs"),
    include_str!("../src/lib.rs"),
    include_str!("../src/kinds.rs"),
    include_str!("../src/operators.rs"),
    include_str!("../src/rows.rs"),
    include_str!("../src/storage.rs")
);

/// What kvc/experimental.h declares, and this crate does not.
const NOT_DECLARED: [&str; 3] = ["kvc_device_info", "kvc_device_name", "kvc_device_query"];

/// Returns the golden lists, or nothing outside the repository.
fn golden() -> String {
    const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../..");
    if !Path::new(REPOSITORY).join("capi/kvc.map").exists() {
        return String::new();
    }
    let lists = ["tests/abi/layout.txt", "tests/abi/experimental.txt"];
    let text = lists.map(|list| std::fs::read_to_string(Path::new(REPOSITORY).join(list)).unwrap());
    let declared = |line: &&str| !NOT_DECLARED.iter().any(|name| line.contains(name));
    let lines = text.iter().flat_map(|list| list.lines());
    lines.filter(declared).collect::<Vec<_>>().join("\n")
}

fn squeeze(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace("( ", "(")
        .replace(", )", ")")
        .replace(",)", ")")
        .replace("< ", "<")
        .replace(", >", ">")
}

/// "const int32_t *position" -> ("position", "*const i32")
fn translate(declaration: &str) -> (String, String) {
    let declaration = declaration.trim();
    for length in ["KVC_MAX_DIMS", "32"] {
        if let Some(array) = declaration.strip_suffix(&format!("[{length}]")) {
            let (name, element) = translate(array);
            return (name, format!("[{element}; {length}]"));
        }
    }
    if let Some(array) = declaration.strip_suffix("[2]") {
        let (name, element) = translate(array);
        return (name, format!("*mut {element}")); // an array argument is a pointer
    }
    let at = declaration
        .rfind(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap()
        + 1;
    let name = match &declaration[at..] {
        "in" => "r#in", // a keyword
        name => name,
    };
    (name.to_string(), translate_type(&declaration[..at]))
}

/// "kvc_cache *const *" -> "*const *mut kvc_cache"
fn translate_type(c: &str) -> String {
    let mut parts = c.split('*').map(str::trim);
    let base = parts.next().unwrap();
    let (mut constant, base) = match base.strip_prefix("const ") {
        Some(base) => (true, base),
        None => (false, base),
    };
    let mut translated = match base {
        "int32_t" => "i32",
        "uint32_t" => "u32",
        "int64_t" => "i64",
        "uint64_t" => "u64",
        "size_t" => "usize",
        "float" => "f32",
        "char" => "c_char",
        "void" => "c_void",
        other => other,
    }
    .to_string();
    for behind in parts {
        let pointer = if constant { "*const " } else { "*mut " };
        translated.insert_str(0, pointer);
        constant = behind == "const";
    }
    translated
}

macro_rules! struct_layouts {
    ($($name:ident { $($field:ident),* $(,)? })*) => {{
        let mut places: HashMap<String, (usize, usize)> = HashMap::new();
        $(
            places.insert(stringify!($name).to_string(), (size_of::<$name>(), align_of::<$name>()));
            let probe = MaybeUninit::<$name>::uninit();
            let base = probe.as_ptr();
            $({
                // Sound on uninitialised memory: this takes an address and reads nothing.
                let field = unsafe { std::ptr::addr_of!((*base).$field) };
                fn size_behind<T>(_: *const T) -> usize { size_of::<T>() }
                places.insert(
                    concat!(stringify!($name), ".", stringify!($field)).to_string(),
                    (field as usize - base as usize, size_behind(field)),
                );
            })*
        )*
        places
    }};
}

#[test]
fn structs_are_as_golden() {
    let golden = golden();
    if golden.is_empty() {
        return;
    }
    let mut places = struct_layouts! {
        kvc_tensor {
            data, byte_offset, shape, strides, ndim, dtype, device_type, device_id, flags, reserved,
        }
        kvc_device_desc { struct_size, n_threads, flags, device_allocator }
        kvc_allocator { user, alloc, free }
        kvc_cache_desc {
            struct_size, kind, flags, n_layers, n_kv_heads, head_dim_k, head_dim_v, dtype_k,
            dtype_v, max_sequences, capacity, max_batch, cells, max_q_heads, block_k, block_v,
            v_first,
        }
        kvc_causal_desc {
            struct_size, kind, flags, reach, memory, chunk, keep_first, cell_padding, mask_dtype,
        }
        kvc_sequence_info { struct_size, flags, first, next, count, room, lost_below, reserved }
        kvc_stats { struct_size, state, cells, cells_used, cells_shared, bytes, passes }
        kvc_attention_desc { struct_size, n_q_heads, scale, softcap, flags }
        kvc_rope_desc { struct_size, pairs, n_dims, base, scale, first_dim }
        kvc_attention_extra {
            struct_size, flags, bias, mask, weights, lse, dropout_seed, first_position, constants,
            alibi_slopes, sinks,
        }
        kvc_run { cell, length, position, offset }
        kvc_encoder_desc { struct_size, kind, flags, inputs, mask_dtype }
        kvc_recurrent_desc {
            struct_size, kind, flags, dtype_state, state_size, conv_channels, conv_dim, dtype_conv,
            checkpoints, checkpoint_interval, checkpoint_min_pos, draft_states, reserved,
        }
        kvc_state_sequence { sequence, n_tokens, first_token, first_row, n_rows, read_slot }
        kvc_storage_info {
            struct_size, dtype, code_dtype, scale_dtype, block, codes_per_row, scales_per_row,
            bytes_per_row,
        }
        kvc_codec_desc { struct_size, dtype, flags, block, scale }
        kvc_transformer_desc { struct_size, kind, flags, reach, value_heads, mask_dtype }
        kvc_lightning_desc {
            struct_size, kind, flags, block, checkpoints, checkpoint_interval, checkpoint_min_pos,
            draft_states,
        }
        kvc_metadata {
            struct_size, kind, flags, batch_size, sequence_length, num_hidden_layers, pad_token_id,
            num_heads, head_dim, key_heads, value_heads, key_dim, value_dim,
        }
        kvc_operator_info {
            struct_size, devices, modes, features, storage, runtime_dtypes, softmax_dtypes,
            head_dim_min, head_dim_max, head_dim_multiple, block_q_multiple, block_k_multiple,
            name, canonical,
        }
        kvc_operator_needs {
            struct_size, mode, features, dtype_k, dtype_v, n_q_heads, n_kv_heads, head_dim_k,
            head_dim_v, runtime_dtype, softmax_dtype,
        }
        kvc_operator_desc {
            struct_size, flags, runtime_dtype, softmax_dtype, softmax_scale, dropout_prob, block_q,
            block_k, block_b, stretches, max_rows, max_q_len, max_kv_len, n_kv_heads, max_q_heads,
            head_dim_k, head_dim_v,
        }
        kvc_forward_desc {
            struct_size, flags, dropout_seed, reach, chunk, query_offset, layer, softcap, reserved,
        }
        kvc_operator_call {
            struct_size, mode, features, layer, n_tokens, n_q_heads, n_kv_heads, batch, scale,
            softcap, dropout_prob, keep_factor, block_q, block_k, block_b, stretches, dropout_seed,
            slopes, sinks, q, k, k_scales, v, v_scales, bias, mask, position, sequence, out, lse,
            weights, stream,
        }
        kvc_operator_functions {
            struct_size, reserved, supports, forward_native, forward_cpu, forward_cuda, release,
        }
    };
    for line in golden.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0] == "struct" || words[0] == "field" {
            let want = (words[3].parse().unwrap(), words[5].parse().unwrap());
            assert_eq!(places.remove(words[1]), Some(want), "{line}");
        }
        if words[0] == "field" && !line.contains("(*") {
            let (name, kind) = translate(line.split_once(" : ").unwrap().1);
            assert!(
                SOURCE.contains(&format!("    pub {name}: {kind},")),
                "{line}: {name}: {kind}"
            );
        }
    }
    assert!(places.is_empty(), "not in the golden list: {places:?}");
}

#[test]
fn constants_are_as_golden() {
    let golden = golden();
    if golden.is_empty() {
        return;
    }
    let mut wanted = BTreeMap::new();
    for line in golden.lines().filter(|line| line.starts_with("constant ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        wanted.insert(words[1].to_string(), words[2].parse::<i64>().unwrap());
    }
    let declared: BTreeMap<String, i64> = SOURCE
        .lines()
        .filter_map(|line| line.strip_prefix("pub const "))
        .filter(|rest| !rest.starts_with("KVC_VERSION_")) // not in the golden list: see below
        .map(|rest| {
            let (name, rest) = rest.split_once(": ").unwrap();
            let value = rest.split_once(" = ").unwrap().1.trim_end_matches(';');
            (
                name.to_string(),
                if value == "i32::MAX" {
                    i64::from(i32::MAX)
                } else {
                    value.parse().unwrap()
                },
            )
        })
        .collect();
    assert_eq!(declared, wanted);
}

#[test]
fn the_version_is_that_of_the_headers() {
    assert_eq!(
        unsafe { kvc_version_number() } >> 8,
        KVC_VERSION_NUMBER >> 8
    );
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../capi/include/kvc/base.h"
    );
    let header = std::fs::read_to_string(path).unwrap_or_default();
    if header.is_empty() {
        return; // outside the repository
    }
    let number = |part: &str| -> u32 {
        let name = format!("#define KVC_VERSION_{part} ");
        let line = header.lines().find(|line| line.starts_with(&name)).unwrap();
        line[name.len()..].parse().unwrap()
    };
    assert_eq!(
        KVC_VERSION_NUMBER,
        number("MAJOR") << 16 | number("MINOR") << 8 | number("PATCH")
    );
}

/// "kvc_name : result (arguments)" -> ("kvc_name", "(arguments) -> result")
fn translate_function(line: &str) -> (&str, String) {
    let (name, rest) = line.split_once(" : ").unwrap();
    let (result, arguments) = rest.split_once('(').unwrap();
    let translated: Vec<String> = arguments
        .trim_end_matches(')')
        .split(',')
        .filter(|argument| *argument != "void")
        .map(|argument| {
            let (name, kind) = translate(argument);
            format!("{name}: {kind}")
        })
        .collect();
    let result = match result.trim() {
        "void" => String::new(),
        result => format!(" -> {}", translate_type(result)),
    };
    (name, format!("({}){result}", translated.join(", ")))
}

#[test]
fn functions_are_as_golden() {
    let golden = golden();
    if golden.is_empty() {
        return;
    }
    let source = squeeze(SOURCE);
    let (mut functions, mut callbacks) = (0, 0);
    for line in golden.lines() {
        if let Some(line) = line.strip_prefix("function ") {
            let (name, signature) = translate_function(line);
            let want = format!("pub fn {name}{signature};");
            assert!(source.contains(&want), "{want}");
            functions += 1;
        } else if let Some(line) = line.strip_prefix("callback ") {
            let (name, signature) = translate_function(line);
            let want = format!("pub type {name} = Option<unsafe extern \"C\" fn{signature}>;");
            assert!(source.contains(&want), "{want}");
            callbacks += 1;
        }
    }
    assert_eq!(source.matches("pub fn kvc_").count(), functions);
    assert_eq!(
        source.matches("unsafe extern \"C\" fn(user").count(),
        callbacks + 2
    );
    // and kvc_allocator's
}
