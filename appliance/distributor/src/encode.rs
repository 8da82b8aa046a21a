//! An object's bytes as Y fragments with their checksums. Pure computation, for a blocking thread.
//!
//! A data fragment that lies in one piece of the payload is that piece, uncopied; one that crosses pieces or is padded is copied.

use bytes::Bytes;
use lamina_contract::{PageBuffer, PageBuffers};
use lamina_formats::fragment::{FragmentSums, SumBuilder};

use crate::codec::{Codec, CodecError};
use crate::stripe::Layout;

/// A fragment without its header, which needs the stripe's id.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    pub(crate) data: Bytes,
    pub(crate) sums: FragmentSums,
}

pub(crate) fn sums_of(data: &[u8]) -> FragmentSums {
    let mut sums = SumBuilder::default();
    sums.update(data);
    sums.finish()
}

/// All Y fragments of an object. `codec` is `None` for copies.
pub(crate) fn encode(
    payload: &[Bytes],
    layout: &Layout,
    codec: Option<&dyn Codec>,
    buffers: &PageBuffers,
) -> Result<Vec<Encoded>, CodecError> {
    let each = layout.fragment_len();
    let data: Vec<Bytes> = (0..layout.policy.data() as u64).map(|index| cut(payload, index * each, each, buffers)).collect();
    let Some(codec) = codec else {
        let data = data.into_iter().next().ok_or(CodecError::Shape)?;
        let sums = sums_of(&data);
        return Ok(vec![Encoded { data, sums }; layout.policy.total()]);
    };
    let inputs: Vec<&[u8]> = data.iter().map(Bytes::as_ref).collect();
    // One fragment's length; the object is in memory already and this is P/X of it.
    let mut parity: Vec<PageBuffer> = (0..layout.policy.parity()).map(|_| buffers.take(each as usize)).collect();
    let mut places: Vec<&mut [u8]> = parity.iter_mut().map(|parity| &mut **parity).collect();
    codec.encode(&inputs, &mut places)?;
    let all = data.into_iter().chain(parity.into_iter().map(PageBuffer::share));
    Ok(all
        .map(|data| {
            let sums = sums_of(&data);
            Encoded { data, sums }
        })
        .collect())
}

/// Bytes `start..start + len` of the payload, padded with zeros behind its end.
fn cut(payload: &[Bytes], start: u64, len: u64, buffers: &PageBuffers) -> Bytes {
    let (start, len) = (start as usize, len as usize);
    let mut copied: Option<PageBuffer> = None;
    let (mut base, mut filled) = (0, 0);
    for piece in payload {
        let (from, to) = (start.clamp(base, base + piece.len()), (start + len).clamp(base, base + piece.len()));
        if from < to {
            let part = from - base..to - base;
            if part.len() == len {
                return piece.slice(part);
            }
            let copied = copied.get_or_insert_with(|| buffers.take(len));
            copied[filled..filled + part.len()].copy_from_slice(&piece[part]);
            filled += to - from;
        }
        base += piece.len();
    }
    let mut copied = copied.unwrap_or_else(|| buffers.take(len));
    copied[filled..].fill(0);
    copied.share()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use lamina_contract::PageBuffers;

    use super::cut;

    #[test]
    fn a_fragment_inside_one_piece_is_not_copied() {
        let buffers = PageBuffers::keeping(1 << 20);
        // What an earlier fragment left in it must not show.
        buffers.take(64 << 10).fill(9);
        let piece = Bytes::from(vec![7; 100]);
        let payload = [Bytes::from_static(b"head"), piece.clone()];
        let inside = cut(&payload, 14, 50, &buffers);
        assert_eq!(inside.as_ptr(), piece[10..].as_ptr());
        let crossing = cut(&payload, 2, 4, &buffers);
        assert_eq!(&crossing[..], b"ad\x07\x07");
        let padded = cut(&payload, 102, 4, &buffers);
        assert_eq!(&padded[..], [7, 7, 0, 0]);
        assert_eq!(&cut(&payload, 104, 4, &buffers)[..], [0; 4]);
        assert_eq!(&cut(&[], 0, 4, &buffers)[..], [0; 4]);
        assert!(cut(&[piece], 50, 64 << 10, &buffers)[50..].iter().all(|byte| *byte == 0));
    }
}
