//! Reading an object or a range of it.
//!
//! A healthy read touches only the fragments that hold its bytes, in whole 4 KiB pages, each checked against the CRC in the verified
//! header. A fragment that is missing, damaged, of another stripe or late is made from any X others, only in the columns that are
//! needed; those are verified as well before they are decoded. More than P lost is an error that names them.
//!
//! No byte leaves here that was not covered by a CRC that held, or computed from bytes that were.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use lamina_contract::PageBuffer;
use lamina_formats::fragment::{FragmentHeader, UnverifiedHeader};
use object_store::path::Path;

use crate::distributor::Core;
use crate::error::{DistributorError, LostFragment, TargetFault};
use crate::stats::add;
use crate::stripe::{Name, Piece};
use crate::target::{Patience, Purpose};
use crate::view::StripeView;

/// Decoding of less is done where it is: handing it over costs more.
const INLINE_BYTES: usize = 64 << 10;

/// A stripe may be replaced while it is read; the next look finds the new one.
const ATTEMPTS: usize = 4;

/// Verified pages of a fragment.
#[derive(Debug, Clone)]
pub(crate) struct Pages {
    pub(crate) index: usize,
    /// Where they begin in the fragment's data.
    pub(crate) start: u64,
    pub(crate) bytes: Bytes,
}

impl Pages {
    fn covers(&self, columns: &Range<u64>) -> bool {
        self.start <= columns.start && columns.end <= self.start + self.bytes.len() as u64
    }

    /// `columns` must be covered.
    fn slice(&self, columns: &Range<u64>) -> Bytes {
        self.bytes.slice((columns.start - self.start) as usize..(columns.end - self.start) as usize)
    }
}

impl Core {
    /// Bytes `range` of the object that `view` shows, as pieces in order. `range` lies within the object.
    ///
    /// # Errors
    /// [`DistributorError::Unreadable`] and whatever a fresh look at the object finds.
    pub(crate) async fn read(
        self: &Arc<Self>,
        key: &Path,
        view: &Arc<StripeView>,
        range: Range<u64>,
    ) -> Result<Vec<Bytes>, DistributorError> {
        let pieces = view.layout.pieces(&range);
        let mut got: Vec<Option<Pages>> = vec![None; pieces.len()];
        let mut lost: Vec<LostFragment> = Vec::new();
        let patience = if view.layout.policy.parity() == 0 {
            Patience::Until(self.options.read_timeout)
        } else {
            Patience::Hedge(self.hedge_after())
        };
        let started = tokio::time::Instant::now();
        if let [only] = pieces.as_slice() {
            match self.read_piece(key, view, *only, patience, Purpose::Read).await {
                Ok(pages) => got[0] = Some(pages),
                Err(fault) => lost.push(fault),
            }
        } else {
            let mut reads: FuturesUnordered<_> = pieces
                .iter()
                .enumerate()
                .map(|(at, piece)| async move { (at, self.read_piece(key, view, *piece, patience, Purpose::Read).await) })
                .collect();
            while let Some((at, outcome)) = reads.next().await {
                match outcome {
                    Ok(pages) => got[at] = Some(pages),
                    Err(fault) => lost.push(fault),
                }
            }
        }
        if lost.is_empty() {
            self.note_latency(started.elapsed());
        } else {
            self.reconstruct(key, view, &pieces, &mut got, lost).await?;
        }
        let bytes = pieces.iter().zip(got).map(|(piece, pages)| Some(pages?.slice(&(piece.from..piece.to)))).collect::<Option<_>>();
        bytes.ok_or(DistributorError::Codec(crate::codec::CodecError::Shape))
    }

    /// Verified pages around one piece, from the target that holds its fragment.
    async fn read_piece(
        &self,
        key: &Path,
        view: &StripeView,
        piece: Piece,
        patience: Patience,
        purpose: Purpose,
    ) -> Result<Pages, LostFragment> {
        let mut lost = LostFragment { index: piece.index, target: None, fault: TargetFault::Missing };
        for &at in view.holders.get(piece.index).map(Vec::as_slice).unwrap_or_default() {
            match self.read_pages(key, view, at, piece.index, piece.pages(), patience, purpose).await {
                Ok(pages) => return Ok(pages),
                Err(fault) => lost = LostFragment { index: piece.index, target: self.targets.get(at).map(|t| t.place.id), fault },
            }
        }
        Err(lost)
    }

    /// Reads and verifies `columns` (whole pages) of fragment `index` from target `at`; reads and verifies the header when it is not known.
    #[expect(clippy::too_many_arguments, reason = "each names one thing that varies between a first try and a last resort")]
    pub(crate) async fn read_pages(
        &self,
        key: &Path,
        view: &StripeView,
        at: usize,
        index: usize,
        columns: Range<u64>,
        patience: Patience,
        purpose: Purpose,
    ) -> Result<Pages, TargetFault> {
        let target = self.targets.get(at).ok_or(TargetFault::Absent)?;
        let name = Name::Fragment { layout: view.layout, index }.under(key);
        let base = view.layout.header_len();
        let data = base + columns.start..base + columns.end;
        let known = view.header(index);
        let ranges = if known.is_some() { vec![data.clone()] } else { vec![0..base, data.clone()] };
        let mut read =
            target.call(purpose, patience, |store| async move { store.get_ranges(&name, &ranges).await }).await?.into_iter();
        let checked = (|| {
            let header = match known {
                Some(header) => header,
                None => Arc::new(self.verified_header(key, view, index, &read.next().ok_or(TargetFault::Wrong)?)?),
            };
            let bytes = read.next().ok_or(TargetFault::Wrong)?;
            if bytes.len() as u64 != data.end - data.start {
                return Err(TargetFault::Wrong);
            }
            header.verify_pages(columns.start, &bytes).map_err(TargetFault::Damaged)?;
            view.learn(index, header);
            target.count_read(bytes.len() as u64);
            Ok(Pages { index, start: columns.start, bytes })
        })();
        if let Err(fault) = &checked {
            add(&self.counters.damaged_fragments, 1);
            view.forget_header(index);
            target.failed(fault);
            tracing::warn!(%key, index, target_id = %target.place.id, %fault, "a fragment is damaged");
        }
        checked
    }

    pub(crate) fn verified_header(
        &self,
        key: &Path,
        view: &StripeView,
        index: usize,
        bytes: &[u8],
    ) -> Result<FragmentHeader, TargetFault> {
        let header = UnverifiedHeader::new(bytes).verify().map_err(TargetFault::Damaged)?;
        if header.pool() == self.options.pool && view.layout.matches(key, index, &header) {
            Ok(header)
        } else {
            Err(TargetFault::Wrong)
        }
    }

    /// Makes the pieces that were not got out of any X other fragments.
    async fn reconstruct(
        self: &Arc<Self>,
        key: &Path,
        view: &Arc<StripeView>,
        pieces: &[Piece],
        got: &mut [Option<Pages>],
        lost: Vec<LostFragment>,
    ) -> Result<(), DistributorError> {
        add(&self.counters.degraded_reads, 1);
        let missing: Vec<Piece> = pieces.iter().zip(got.iter()).filter(|(_, got)| got.is_none()).map(|(piece, _)| *piece).collect();
        let start = missing.iter().map(|piece| piece.pages().start).min().unwrap_or(0);
        let end = missing.iter().map(|piece| piece.pages().end).max().unwrap_or(0);
        let columns = start..end;
        let covering = got.iter().flatten().filter(|pages| pages.covers(&columns));
        let have = covering.map(|pages| Pages { index: pages.index, start, bytes: pages.slice(&columns) }).collect();
        let wanted: Vec<usize> = missing.iter().map(|piece| piece.index).collect();
        // Being late or set aside is no reason to repair; the rest is.
        if lost.iter().any(|lost| !matches!(lost.fault, TargetFault::TimedOut | TargetFault::Absent | TargetFault::Device(_))) {
            self.doubt(key);
        }
        let gathered = self.gather(key, view, &columns, have, lost).await?;
        let rebuilt = self.rebuild(view, gathered, wanted).await?;
        for (place, piece) in got.iter_mut().zip(pieces) {
            if place.is_none() {
                let bytes = rebuilt.iter().find(|(index, _)| *index == piece.index).map(|(_, bytes)| bytes.clone());
                *place = bytes.map(|bytes| Pages { index: piece.index, start, bytes });
            }
        }
        Ok(())
    }

    /// Verified `columns` of at least X fragments: asks as many as are needed, one more whenever one fails or is late, and in the end
    /// those that were late or are set aside.
    pub(crate) async fn gather(
        self: &Arc<Self>,
        key: &Path,
        view: &Arc<StripeView>,
        columns: &Range<u64>,
        mut have: Vec<Pages>,
        lost: Vec<LostFragment>,
    ) -> Result<Vec<Pages>, DistributorError> {
        let need = view.layout.policy.data();
        // Whoever failed already comes last, with all the patience there is; a fragment that is damaged does not come again.
        let mut dead: Vec<LostFragment> = Vec::new();
        let mut last: Vec<usize> = Vec::new();
        for lost in lost {
            match lost.fault {
                TargetFault::TimedOut | TargetFault::Absent | TargetFault::Store(_) | TargetFault::Device(_) => {
                    last.push(lost.index)
                }
                _ => dead.push(lost),
            }
        }
        let tried = |index: &usize| last.contains(index) || dead.iter().any(|lost| lost.index == *index);
        let fresh = (0..view.holders.len()).filter(|index| !tried(index) && have.iter().all(|pages| pages.index != *index));
        let mut queue: std::collections::VecDeque<(usize, Purpose)> = fresh.map(|index| (index, Purpose::Read)).collect();
        queue.extend(last.into_iter().map(|index| (index, Purpose::LastResort)));
        let mut asked = FuturesUnordered::new();
        let ask = |index: usize, purpose: Purpose| {
            let piece = Piece { index, from: columns.start, to: columns.end };
            async move {
                let patience = Patience::Until(self.options.read_timeout);
                (purpose, self.read_piece(key, view, piece, patience, purpose).await)
            }
        };
        while have.len() < need {
            while have.len() + asked.len() < need
                && let Some((index, purpose)) = queue.pop_front()
            {
                asked.push(ask(index, purpose));
            }
            if asked.is_empty() {
                break;
            }
            let answer = match tokio::time::timeout(self.hedge_after(), asked.next()).await {
                Ok(answer) => answer,
                Err(_) => {
                    if let Some((index, purpose)) = queue.pop_front() {
                        asked.push(ask(index, purpose));
                        continue;
                    }
                    asked.next().await
                }
            };
            match answer {
                Some((_, Ok(pages))) => have.push(pages),
                // A set-aside target was not even asked: it is, when nobody else is left.
                Some((Purpose::Read, Err(lost))) if matches!(lost.fault, TargetFault::Absent) => {
                    queue.push_back((lost.index, Purpose::LastResort));
                }
                Some((_, Err(lost))) => dead.push(lost),
                None => {}
            }
        }
        if have.len() >= need {
            return Ok(have);
        }
        dead.sort_by_key(|lost| lost.index);
        Err(DistributorError::Unreadable { key: key.to_string(), stripe: view.layout.stripe, have: have.len(), need, lost: dead })
    }

    /// Fragments `wanted` in the columns that `pages` (X or more fragments, same columns) have.
    pub(crate) async fn rebuild(
        &self,
        view: &StripeView,
        pages: Vec<Pages>,
        wanted: Vec<usize>,
    ) -> Result<Vec<(usize, Bytes)>, DistributorError> {
        add(&self.counters.decodes, wanted.len() as u64);
        if view.layout.policy.data() == 1 {
            let copy = pages.into_iter().next().map(|pages| pages.bytes).unwrap_or_default();
            return Ok(wanted.into_iter().map(|index| (index, copy.clone())).collect());
        }
        let codec = self.codecs.of(view.layout.policy)?;
        let inputs: Vec<(usize, Bytes)> = pages.into_iter().map(|pages| (pages.index, pages.bytes)).collect();
        let bytes = inputs.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        let buffers = self.buffers.clone();
        let work = move || {
            let present: Vec<(usize, &[u8])> = inputs.iter().map(|(index, bytes)| (*index, bytes.as_ref())).collect();
            let len = present.first().map_or(0, |(_, bytes)| bytes.len());
            let mut rebuilt: Vec<PageBuffer> = wanted.iter().map(|_| buffers.take(len)).collect();
            let mut places: Vec<&mut [u8]> = rebuilt.iter_mut().map(|bytes| &mut **bytes).collect();
            codec.rebuild_into(&present, &wanted, &mut places)?;
            Ok::<_, crate::codec::CodecError>(wanted.into_iter().zip(rebuilt.into_iter().map(PageBuffer::share)).collect())
        };
        if bytes <= INLINE_BYTES {
            return Ok(work()?);
        }
        Ok(tokio::task::spawn_blocking(work).await??)
    }

    /// Reads `range` of `key`, looking again when the stripe changed under the reader.
    pub(crate) async fn read_current(
        self: &Arc<Self>,
        key: &Path,
        mut view: Arc<StripeView>,
        range: Range<u64>,
    ) -> Result<Vec<Bytes>, DistributorError> {
        for attempt in 1.. {
            let error = match self.read(key, &view, range.clone()).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            self.views.remove_view(key, &view);
            if attempt >= ATTEMPTS {
                return Err(error);
            }
            let stale = view.layout.stripe;
            match self.fresh_view(key).await? {
                // The same object: a retry sees fragments that moved. Another one: its caller was promised this one's length and tag.
                Some(fresh) if fresh.layout.stripe == stale && attempt == 1 => view = fresh,
                _ => return Err(error),
            }
        }
        Err(DistributorError::Unknown { unknown: 0 })
    }

    /// When to ask somebody else: the configured time, or eight times what reads take lately if that is more.
    pub(crate) fn hedge_after(&self) -> Duration {
        let usual = Duration::from_micros(self.latency_us.load(Ordering::Relaxed)) * 8;
        self.options.hedge_after.max(usual).min(self.options.read_timeout)
    }

    fn note_latency(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let old = self.latency_us.load(Ordering::Relaxed);
        // A sixteenth of the new one; two threads that race lose one sample.
        self.latency_us.store(old - old / 16 + took / 16, Ordering::Relaxed);
    }
}
