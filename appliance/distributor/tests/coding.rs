//! The code itself: both engines agree byte for byte, every loss that the policy bears decodes, one more refuses.

use std::sync::Arc;

use lamina_contract::Policy;
use lamina_distributor::{Codec, CodecError, Codecs, Engine};
use lamina_stores::conformance::sample;

fn policy(text: &str) -> Policy {
    text.parse().expect("a policy")
}

fn engines(policy: Policy) -> [Arc<dyn Codec>; 2] {
    [Engine::Reference, Engine::Fastest].map(|engine| Codecs::new(engine).of(policy).expect("a codec"))
}

fn places(fragments: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    fragments.iter_mut().map(Vec::as_mut_slice).collect()
}

fn fragments(codec: &dyn Codec, policy: Policy, len: usize) -> Vec<Vec<u8>> {
    let data: Vec<Vec<u8>> = (0..policy.data()).map(|n| sample(n as u64 + 1, len).to_vec()).collect();
    let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let mut parity = vec![vec![0; len]; policy.parity()];
    codec.encode(&slices, &mut places(&mut parity)).expect("encodes");
    data.into_iter().chain(parity).collect()
}

#[test]
fn all_engines_make_the_same_bytes() {
    for text in ["2+1", "4+2", "11+7", "3+5", "10+1", "17+17", "5+0"] {
        let policy = policy(text);
        let [reference, fast] = engines(policy);
        for len in [0, 1, 2, 15, 16, 31, 32, 33, 63, 64, 65, 127, 1000, 4095, 4096, 32_767, 32_768, 32_769, 70_001] {
            let expected = fragments(&*reference, policy, len);
            assert_eq!(fragments(&*fast, policy, len), expected, "{text} with {len} bytes");
            // The last X that survive, so that as many as can be are rebuilt.
            let lost: Vec<usize> = (0..policy.parity()).collect();
            let present: Vec<(usize, &[u8])> =
                expected.iter().enumerate().skip(lost.len()).map(|(index, bytes)| (index, bytes.as_slice())).collect();
            for codec in [&reference, &fast] {
                let rebuilt = codec.rebuild(&present, &lost).expect("decodes");
                assert_eq!(rebuilt, expected[..lost.len()], "{text} with {len} bytes by {}", codec.name());
            }
        }
    }
}

#[cfg(all(feature = "isa-l", target_arch = "x86_64"))]
#[test]
fn the_fast_engine_is_in_use_where_the_processor_has_it() {
    let expected = if std::arch::is_x86_feature_detected!("avx2") { "isa-l" } else { "reed-solomon-erasure" };
    assert_eq!(engines(policy("4+2"))[1].name(), expected);
}

/// Calls `each` with every set of `size` of `0..of`.
fn subsets(of: usize, size: usize, each: &mut dyn FnMut(&[usize])) {
    let mut chosen: Vec<usize> = (0..size).collect();
    loop {
        each(&chosen);
        let Some(at) = (0..size).rev().find(|&at| chosen[at] < of - size + at) else { return };
        chosen[at] += 1;
        for next in at + 1..size {
            chosen[next] = chosen[next - 1] + 1;
        }
    }
}

#[test]
fn every_loss_of_7_of_18_decodes_and_every_loss_of_8_refuses() {
    let policy = policy("11+7");
    let [reference, fast] = engines(policy);
    let all = fragments(&*reference, policy, 16);
    let (mut decoded, mut refused) = (0, 0);
    for size in 0..=8 {
        subsets(18, size, &mut |lost| {
            let present: Vec<(usize, &[u8])> =
                (0..18).filter(|index| !lost.contains(index)).map(|index| (index, all[index].as_slice())).collect();
            if size == 8 {
                assert_eq!(fast.rebuild(&present, lost), Err(CodecError::TooFew { have: 10, need: 11 }));
                refused += 1;
                return;
            }
            let rebuilt = fast.rebuild(&present, lost).expect("decodes");
            assert!(rebuilt.iter().zip(lost).all(|(bytes, &index)| *bytes == all[index]), "lost {lost:?}");
            decoded += 1;
        });
    }
    assert_eq!((decoded, refused), (63_004, 43_758));
}

#[test]
fn the_reference_decodes_what_the_fast_engine_encoded() {
    let policy = policy("4+2");
    let [reference, fast] = engines(policy);
    let all = fragments(&*fast, policy, 5000);
    for size in 1..=2 {
        subsets(6, size, &mut |lost| {
            let present: Vec<(usize, &[u8])> =
                (0..6).filter(|index| !lost.contains(index)).map(|index| (index, all[index].as_slice())).collect();
            let rebuilt = reference.rebuild(&present, lost).expect("decodes");
            assert!(rebuilt.iter().zip(lost).all(|(bytes, &index)| *bytes == all[index]), "lost {lost:?}");
        });
    }
}

#[test]
fn fragments_that_do_not_fit_are_refused() {
    for codec in engines(policy("4+2")) {
        let long = vec![0_u8; 64];
        let short = vec![0_u8; 63];
        let mut parity = vec![vec![0; 64]; 2];
        assert_eq!(codec.encode(&[&long, &long, &long], &mut places(&mut parity)), Err(CodecError::Shape));
        assert_eq!(codec.encode(&[&long, &long, &long, &short], &mut places(&mut parity)), Err(CodecError::Shape));
        assert_eq!(codec.encode(&[long.as_slice(); 4], &mut places(&mut [vec![0; 64], vec![0; 63]])), Err(CodecError::Shape));
        let twice: Vec<(usize, &[u8])> = [0, 1, 1, 2].map(|index| (index, long.as_slice())).into();
        assert_eq!(codec.rebuild(&twice, &[3]), Err(CodecError::TooFew { have: 3, need: 4 }));
        let uneven: Vec<(usize, &[u8])> = vec![(0, &long), (1, &long), (2, &short), (3, &long)];
        assert_eq!(codec.rebuild(&uneven, &[5]), Err(CodecError::Shape));
        let present: Vec<(usize, &[u8])> = [0, 1, 2, 3].map(|index| (index, long.as_slice())).into();
        assert_eq!(codec.rebuild(&present, &[6]), Err(CodecError::Shape));
        let beyond: Vec<(usize, &[u8])> = [0, 1, 2, 9].map(|index| (index, long.as_slice())).into();
        assert_eq!(codec.rebuild(&beyond, &[3]), Err(CodecError::Shape));
    }
}
