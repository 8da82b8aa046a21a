//! Parity out of data, and any fragment out of any X others.
//!
//! Two engines compute the same code byte for byte: the reference is crate reed-solomon-erasure; ISA-L's kernels, which choose their
//! instructions at run time, are given the reference's coefficients. [`Codecs`] picks the fast one where the processor has AVX2.
//!
//! All fragments given to one call have the same length; a codec has no opinion on what it is.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use lamina_contract::Policy;
use parking_lot::Mutex;
use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::matrix::{self, Matrix};

/// Why a codec refused.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// Fewer than X different fragments.
    #[error("{have} fragments, {need} needed")]
    TooFew {
        /// Different fragments given.
        have: usize,
        /// X.
        need: usize,
    },
    /// Fragments of different lengths, or another number of them than the policy says.
    #[error("fragments do not fit the policy")]
    Shape,
    /// The reference refused.
    #[error("reference codec")]
    Reference(#[from] reed_solomon_erasure::Error),
}

/// The code of one policy, computed by one engine.
pub trait Codec: Send + Sync + Debug {
    /// Which engine.
    fn name(&self) -> &'static str;

    /// Fills the P `parity` fragments from the X `data` fragments.
    ///
    /// # Errors
    /// [`CodecError::Shape`] when numbers or lengths do not fit.
    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodecError>;

    /// Fills `out` with the fragments `wanted`, made from at least X of the others.
    ///
    /// # Errors
    /// [`CodecError::TooFew`]; [`CodecError::Shape`] when numbers or lengths do not fit.
    fn rebuild_into(&self, present: &[(usize, &[u8])], wanted: &[usize], out: &mut [&mut [u8]]) -> Result<(), CodecError>;

    /// As [`Codec::rebuild_into`], into new memory.
    ///
    /// # Errors
    /// As there.
    fn rebuild(&self, present: &[(usize, &[u8])], wanted: &[usize]) -> Result<Vec<Vec<u8>>, CodecError> {
        let len = present.first().map_or(0, |(_, bytes)| bytes.len());
        let mut out = vec![vec![0; len]; wanted.len()];
        let mut places: Vec<&mut [u8]> = out.iter_mut().map(Vec::as_mut_slice).collect();
        self.rebuild_into(present, wanted, &mut places)?;
        Ok(out)
    }
}

/// Which engine to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// The fastest that this processor runs.
    #[default]
    Fastest,
    /// The one that defines the code.
    Reference,
}

/// Codecs by policy: stripes of older policies stay readable.
#[derive(Debug)]
pub struct Codecs {
    engine: Engine,
    by_policy: Mutex<HashMap<(usize, usize), Arc<dyn Codec>>>,
}

impl Codecs {
    /// Codecs of one engine.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        Self { engine, by_policy: Mutex::default() }
    }

    /// The codec of a policy with X ≥ 2.
    ///
    /// # Errors
    /// [`CodecError::Reference`] for a policy that the code cannot do.
    pub fn of(&self, policy: Policy) -> Result<Arc<dyn Codec>, CodecError> {
        let key = (policy.data(), policy.parity());
        if let Some(codec) = self.by_policy.lock().get(&key) {
            return Ok(Arc::clone(codec));
        }
        let codec: Arc<dyn Codec> = match self.engine {
            Engine::Fastest => match fast_codec(policy)? {
                Some(codec) => codec,
                None => Arc::new(ReferenceCodec::new(policy)?),
            },
            Engine::Reference => Arc::new(ReferenceCodec::new(policy)?),
        };
        // At most 255 × 255 / 2 policies exist; a pool sees a few.
        self.by_policy.lock().insert(key, Arc::clone(&codec));
        Ok(codec)
    }
}

#[cfg(all(feature = "isa-l", target_arch = "x86_64"))]
fn fast_codec(policy: Policy) -> Result<Option<Arc<dyn Codec>>, CodecError> {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Ok(None);
    }
    Ok(Some(Arc::new(crate::isal::IsalCodec::new(policy)?)))
}

#[cfg(not(all(feature = "isa-l", target_arch = "x86_64")))]
fn fast_codec(_policy: Policy) -> Result<Option<Arc<dyn Codec>>, CodecError> {
    Ok(None)
}

/// Checks that there are `count` fragments of one length, and says which.
pub(crate) fn same_length<'a>(fragments: impl ExactSizeIterator<Item = &'a [u8]>, count: usize) -> Result<usize, CodecError> {
    if fragments.len() != count {
        return Err(CodecError::Shape);
    }
    let mut length = None;
    for fragment in fragments {
        if *length.get_or_insert(fragment.len()) != fragment.len() {
            return Err(CodecError::Shape);
        }
    }
    Ok(length.unwrap_or(0))
}

/// The first X different fragments, in order of their indexes.
pub(crate) fn choose<'a>(policy: Policy, present: &[(usize, &'a [u8])]) -> Result<Vec<(usize, &'a [u8])>, CodecError> {
    let mut chosen = present.to_vec();
    if chosen.iter().any(|(index, _)| *index >= policy.total()) {
        return Err(CodecError::Shape);
    }
    chosen.sort_by_key(|(index, _)| *index);
    chosen.dedup_by_key(|(index, _)| *index);
    if chosen.len() < policy.data() {
        return Err(CodecError::TooFew { have: chosen.len(), need: policy.data() });
    }
    chosen.truncate(policy.data());
    same_length(chosen.iter().map(|(_, bytes)| *bytes), policy.data())?;
    Ok(chosen)
}

/// Crate reed-solomon-erasure: it defines the code, every other engine is compared with it.
#[derive(Debug)]
pub struct ReferenceCodec {
    policy: Policy,
    /// `None` without parity.
    code: Option<ReedSolomon>,
}

impl ReferenceCodec {
    /// The codec of `policy`.
    ///
    /// # Errors
    /// [`CodecError::Reference`].
    pub fn new(policy: Policy) -> Result<Self, CodecError> {
        let code = if policy.parity() == 0 { None } else { Some(ReedSolomon::new(policy.data(), policy.parity())?) };
        Ok(Self { policy, code })
    }
}

impl Codec for ReferenceCodec {
    fn name(&self) -> &'static str {
        "reed-solomon-erasure"
    }

    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        let length = same_length(data.iter().copied(), self.policy.data())?;
        if same_length(parity.iter().map(|parity| &**parity), self.policy.parity())? != length && !parity.is_empty() {
            return Err(CodecError::Shape);
        }
        match &self.code {
            Some(code) if length > 0 => Ok(code.encode_sep(data, parity)?),
            _ => Ok(()),
        }
    }

    fn rebuild_into(&self, present: &[(usize, &[u8])], wanted: &[usize], out: &mut [&mut [u8]]) -> Result<(), CodecError> {
        let chosen = choose(self.policy, present)?;
        fits(&chosen, out, wanted.len())?;
        if wanted.iter().any(|&index| index >= self.policy.total()) {
            return Err(CodecError::Shape);
        }
        let mut shards: Vec<Option<Vec<u8>>> = vec![None; self.policy.total()];
        for (index, bytes) in &chosen {
            if let Some(shard) = shards.get_mut(*index) {
                *shard = Some(bytes.to_vec());
            }
        }
        if let Some(code) = &self.code
            && chosen.first().is_some_and(|(_, bytes)| !bytes.is_empty())
        {
            code.reconstruct(&mut shards)?;
        }
        for (out, &index) in out.iter_mut().zip(wanted) {
            // Every length was checked above; without parity nothing but what is present can be wanted.
            out.copy_from_slice(shards.get(index).and_then(Option::as_deref).unwrap_or_default());
        }
        Ok(())
    }
}

/// Checks that `out` has `count` buffers as long as the chosen fragments.
pub(crate) fn fits(chosen: &[(usize, &[u8])], out: &[&mut [u8]], count: usize) -> Result<(), CodecError> {
    let len = chosen.first().map_or(0, |(_, bytes)| bytes.len());
    if out.len() == count && out.iter().all(|out| out.len() == len) { Ok(()) } else { Err(CodecError::Shape) }
}

/// The rows that make `wanted` out of `chosen`.
pub(crate) fn decoding_rows(generator: &Matrix, chosen: &[(usize, &[u8])], wanted: &[usize]) -> Result<Matrix, CodecError> {
    let indexes: Vec<usize> = chosen.iter().map(|(index, _)| *index).collect();
    matrix::decoder(generator, &indexes, wanted).ok_or(CodecError::Shape)
}
