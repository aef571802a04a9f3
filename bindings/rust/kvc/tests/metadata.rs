//! Sizes of caches as models describe them, and padding.
mod support;
use kvc::*;
use support::{fails, Random};

fn given() -> Metadata {
    Metadata {
        batch_size: 4,
        sequence_length: 10,
        num_hidden_layers: 2,
        pad_token_id: 7,
        num_heads: 8,
        head_dim: 64,
        ..Default::default()
    }
}

#[test]
fn what_was_not_given_is_derived() {
    let mut metadata = Metadata {
        value_dim: 32,
        ..given()
    };
    metadata.resolve().unwrap();
    let want = Metadata {
        key_heads: 8,
        value_heads: 8,
        key_dim: 64,
        value_dim: 32,
        ..given()
    };
    assert_eq!(metadata, want);
}

#[test]
fn errors_have_the_documented_words() {
    type Change = fn(&mut Metadata);
    let changes: [(Change, &str); 6] = [
        (|m| m.batch_size = 0, "batch_size must be positive"),
        (
            |m| m.sequence_length = -1,
            "sequence_length must be positive",
        ),
        (
            |m| m.head_dim = 0,
            "Either head_dim or both key_dim and value_dim must be specified",
        ),
        (
            |m| m.num_heads = 0,
            "Either num_heads or both key_heads and value_heads must be specified",
        ),
        (
            |m| m.num_hidden_layers = 0,
            "num_hidden_layers must be positive",
        ),
        (|m| m.value_heads = -2, "value_heads must be positive"),
    ];
    for (change, words) in changes {
        let mut metadata = given();
        change(&mut metadata);
        let before = metadata;
        let error = metadata.resolve().unwrap_err();
        assert_eq!(
            (error.status, &*error.message),
            (Status::INVALID_ARGUMENT, words)
        );
        assert_eq!(metadata, before);
        let (mut desc, mut kind) = (CacheDesc::default(), TransformerDesc::default());
        let error = metadata
            .descriptors(&mut desc, Some(&mut kind))
            .unwrap_err();
        assert_eq!(error.message, words);
        assert_eq!((desc, kind), Default::default());
    }
}

#[test]
fn descriptors_are_filled_in() {
    let metadata = Metadata {
        value_heads: 4,
        no_causal_mask: true,
        no_attention_bias: true,
        ..given()
    };
    let mut desc = CacheDesc {
        max_batch: 16,
        cells: 5,
        dtype_k: DType::BF16,
        ..Default::default()
    };
    let mut kind = TransformerDesc {
        ring: true,
        reach: 3,
        ..Default::default()
    };
    metadata.descriptors(&mut desc, Some(&mut kind)).unwrap();
    let want = CacheDesc {
        n_layers: 2,
        n_kv_heads: 8,
        head_dim_k: 64,
        head_dim_v: 64,
        max_sequences: 4,
        capacity: 10,
        max_batch: 16,
        dtype_k: DType::BF16,
        ..Default::default()
    };
    assert_eq!(desc, want);
    let want = TransformerDesc {
        ring: true,
        not_causal: true,
        reach: 3,
        value_heads: 4,
        mask_dtype: DType::BOOL,
    };
    assert_eq!(kind, want);
    fails(
        metadata.descriptors(&mut desc, None),
        Status::INVALID_ARGUMENT,
        "kvc_transformer_desc",
    );

    let lightning = Metadata {
        kind: MetadataKind::Lightning,
        sequence_length: 0,
        pad_token_id: 0,
        ..given()
    };
    let mut desc = CacheDesc {
        max_batch: 4,
        ..Default::default()
    };
    lightning.descriptors(&mut desc, None).unwrap();
    let device = Device::open("cpu", 1).unwrap();
    assert!(Cache::new(&device, &desc, &Kind::Lightning(LightningDesc::default())).is_ok());
    let refused = lightning.descriptors(&mut desc, Some(&mut kind));
    fails(refused, Status::INVALID_ARGUMENT, "kind_desc");
    let heads = Metadata {
        value_heads: 4,
        ..lightning
    };
    fails(
        heads.descriptors(&mut desc, None),
        Status::NOT_SUPPORTED,
        "key_heads",
    );
}

#[test]
fn json_brings_back_what_was_written() {
    let lightning = Metadata {
        kind: MetadataKind::Lightning,
        batch_size: i32::MAX,
        key_heads: -5, // nothing is checked
        ..Default::default()
    };
    let transformer = Metadata {
        no_attention_bias: true,
        no_causal_mask: true,
        pad_token_id: i32::MIN,
        ..given()
    };
    for metadata in [given(), transformer, lightning, Metadata::default()] {
        let text = metadata.to_json().unwrap();
        assert_eq!(
            Metadata::from_json(metadata.kind, &text),
            Ok(metadata),
            "{text}"
        );
    }
    assert!(lightning
        .to_json()
        .unwrap()
        .contains(r#""partition_axis": null"#));
    let field = Metadata {
        sequence_length: 3,
        ..lightning
    };
    fails(field.to_json(), Status::INVALID_ARGUMENT, "sequence_length");
}

#[test]
fn json_that_is_none_is_refused() {
    let read = |text: &str| Metadata::from_json(MetadataKind::Transformer, text);
    for text in ["", "[]", "{", r#"{"batch_size": 1"#] {
        fails(read(text), Status::CORRUPT, "");
    }
    fails(
        read(r#"{"batch_size": "many"}"#),
        Status::CORRUPT,
        "batch_size",
    );
    fails(
        read(r#"{"head_dim": 4294967296}"#),
        Status::CORRUPT,
        "head_dim",
    );
    let metadata =
        read(r#"{"another": [1, {}], "batch_size": 1, "batch_size": 2, "head_dim": null}"#);
    let want = Metadata {
        batch_size: 2,
        ..Default::default()
    };
    assert_eq!(metadata, Ok(want));
}

#[test]
fn padding_is_taken_off_both_ends() {
    let mut random = Random(1);
    for _ in 0..200 {
        let (n, q_len, pad) = (random.range(1, 5) as usize, random.range(1, 7) as usize, 3);
        let ids: Vec<i32> = (0..n * q_len).map(|_| random.range(2, 4)).collect();
        let (starts, ends) = padding(&ids, q_len as i32, pad).unwrap();
        for (row, ids) in ids.chunks(q_len).enumerate() {
            let first = ids.iter().position(|&id| id != pad).unwrap_or(q_len);
            let last = ids
                .iter()
                .rposition(|&id| id != pad)
                .map_or(q_len, |last| last + 1);
            assert_eq!((starts[row], ends[row]), (first as i32, last as i32));
        }
    }
    fails(
        padding(&[1, 2, 3], 2, 0),
        Status::INVALID_ARGUMENT,
        "no multiple of q_len 2",
    );
    for (ids, q_len) in [(&[1][..], 0), (&[1], -1), (&[], 0), (&[], -1), (&[], 1)] {
        fails(padding(ids, q_len, 0), Status::INVALID_ARGUMENT, "");
    }
}
