//! What a disk holds: what is durable, what was accepted and not synced, and what a power cut may make of that.
//!
//! The rules are those of `lamina_contract::disk`: a write that was not synced may be whole, missing, torn at sectors of 512 bytes,
//! garbage, or (a firmware's fault) written elsewhere; a name that was not synced may be missing. Pages of 4 KiB, shared between
//! images, so that an image costs what differs from its neighbour.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::dice::Dice;

/// Unit of sharing.
pub const PAGE: u64 = 4096;
const SECTOR: usize = 512;

/// Content of a file by page; an absent page reads as zeros.
pub type Pages = BTreeMap<u64, Bytes>;

/// A file, whatever its name is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

/// Something that was done to a disk.
#[derive(Debug, Clone)]
pub enum DiskEvent {
    /// A file of zeros got this name.
    Create {
        /// Its name.
        name: String,
        /// The file.
        file: FileId,
        /// Its length in bytes.
        len: u64,
    },
    /// Bytes were accepted.
    Write {
        /// Where to.
        file: FileId,
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Everything accepted of the file is durable.
    Sync {
        /// Which file.
        file: FileId,
    },
    /// A name is gone.
    Remove {
        /// Which.
        name: String,
    },
    /// A name changed.
    Rename {
        /// Old.
        from: String,
        /// New.
        to: String,
    },
    /// Names are durable.
    SyncNames,
}

/// What a power cut makes of a write that was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is there.
    Whole,
    /// It is not.
    Lost,
    /// Its first sectors are there, the rest is old.
    Prefix(usize),
    /// Its first sectors are old, the rest is there.
    Suffix(usize),
    /// Each sector is old or new, by chance.
    Torn(u64),
    /// Each sector is old, new or garbage, by chance.
    Garbage(u64),
    /// It was written to this byte of the file instead.
    Misdirected(u64),
}

#[derive(Debug, Clone)]
struct Pending {
    /// Position among all accepted writes of the disk.
    order: u64,
    offset: u64,
    data: Bytes,
}

#[derive(Debug, Clone)]
struct FileImage {
    len: u64,
    durable: Arc<Pages>,
    pending: Vec<Pending>,
}

#[derive(Debug, Clone)]
enum NameOp {
    Put(String, FileId),
    Remove(String),
    Rename(String, String),
}

/// A disk between two events.
#[derive(Debug, Clone, Default)]
pub struct DiskImage {
    files: BTreeMap<FileId, FileImage>,
    names: BTreeMap<String, FileId>,
    pending_names: Vec<NameOp>,
    writes: u64,
    next_file: u64,
}

/// A write that was accepted and not synced, as an enumerator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsynced {
    /// First byte.
    pub offset: u64,
    /// Length in sectors.
    pub sectors: usize,
    /// A place of the file that holds nothing durable: where a misdirected write does no harm that a promise covers.
    pub nowhere: u64,
}

impl DiskImage {
    /// Lets `event` happen.
    pub fn apply(&mut self, event: &DiskEvent) {
        match event {
            DiskEvent::Create { name, file, len } => {
                self.files.insert(*file, FileImage { len: *len, durable: Arc::default(), pending: Vec::new() });
                self.next_file = self.next_file.max(file.0 + 1);
                self.pending_names.push(NameOp::Put(name.clone(), *file));
            }
            DiskEvent::Write { file, offset, data } => {
                self.writes += 1;
                let order = self.writes;
                if let Some(file) = self.files.get_mut(file) {
                    file.pending.push(Pending { order, offset: *offset, data: data.clone() });
                }
            }
            DiskEvent::Sync { file } => {
                if let Some(file) = self.files.get_mut(file) {
                    file.make_durable();
                }
            }
            DiskEvent::Remove { name } => self.pending_names.push(NameOp::Remove(name.clone())),
            DiskEvent::Rename { from, to } => self.pending_names.push(NameOp::Rename(from.clone(), to.clone())),
            DiskEvent::SyncNames => {
                for op in std::mem::take(&mut self.pending_names) {
                    apply_name(&mut self.names, &op);
                }
            }
        }
    }

    /// The writes that a power cut may harm, in the order in which they were accepted.
    #[must_use]
    pub fn unsynced(&self) -> Vec<Unsynced> {
        let mut all: Vec<(u64, Unsynced)> = Vec::new();
        for file in self.files.values() {
            let written = file.pending.iter().map(|w| w.offset + w.data.len() as u64).max().unwrap_or(0);
            let used = file.durable.last_key_value().map_or(0, |(page, _)| (page + 1) * PAGE);
            let nowhere = written.max(used).next_multiple_of(PAGE);
            all.extend(
                file.pending
                    .iter()
                    .map(|w| (w.order, Unsynced { offset: w.offset, sectors: w.data.len().div_ceil(SECTOR), nowhere })),
            );
        }
        all.sort_by_key(|(order, _)| *order);
        all.into_iter().map(|(_, write)| write).collect()
    }

    /// How many changes of names a power cut may lose.
    #[must_use]
    pub fn unsynced_names(&self) -> usize {
        self.pending_names.len()
    }

    /// What a power cut leaves: the n-th unsynced write meets the n-th fate (the last one if there are fewer), the n-th unsynced
    /// change of names survives if `keeps_name` says so.
    #[must_use]
    pub fn settle(&self, fates: &[Fate], mut keeps_name: impl FnMut(usize) -> bool) -> Self {
        let mut image = self.clone();
        for (n, op) in std::mem::take(&mut image.pending_names).iter().enumerate() {
            if keeps_name(n) {
                apply_name(&mut image.names, op);
            }
        }
        let mut all: Vec<(u64, FileId)> = Vec::new();
        for (id, file) in &self.files {
            all.extend(file.pending.iter().map(|w| (w.order, *id)));
        }
        all.sort_unstable();
        let fate = |n: usize| fates.get(n).or(fates.last()).copied().unwrap_or(Fate::Lost);
        let by_order: BTreeMap<u64, Fate> = all.iter().enumerate().map(|(n, (order, _))| (*order, fate(n))).collect();
        for file in image.files.values_mut() {
            let pending = std::mem::take(&mut file.pending);
            if pending.is_empty() {
                continue;
            }
            let len = file.len;
            let pages = Arc::make_mut(&mut file.durable);
            for write in pending {
                let fate = by_order.get(&write.order).copied().unwrap_or(Fate::Lost);
                settle_write(pages, len, &write, fate);
            }
        }
        let named: Vec<FileId> = image.names.values().copied().collect();
        image.files.retain(|id, _| named.contains(id));
        image
    }

    /// The same, but of the newest unsynced write only the first `sectors` were accepted.
    #[must_use]
    pub fn with_last_cut(&self, sectors: usize) -> Self {
        let mut image = self.clone();
        let newest = image.files.values_mut().filter_map(|f| f.pending.last_mut()).max_by_key(|w| w.order);
        if let Some(write) = newest {
            write.data.truncate(sectors * SECTOR);
        }
        image
    }

    /// Names and what a process reads under them: everything accepted, synced or not.
    #[must_use]
    pub fn view(&self) -> BTreeMap<String, (FileId, u64, Arc<Pages>)> {
        let mut names = self.names.clone();
        for op in &self.pending_names {
            apply_name(&mut names, op);
        }
        let mut view = BTreeMap::new();
        for (name, id) in names {
            if let Some(file) = self.files.get(&id) {
                let mut file = file.clone();
                file.make_durable();
                view.insert(name, (id, file.len, file.durable));
            }
        }
        view
    }

    /// The identity that the next new file gets.
    #[must_use]
    pub fn next_file(&self) -> FileId {
        FileId(self.next_file)
    }

    /// Changes one byte of what is durable under `name`; tells whether there was such a byte that was ever written.
    pub fn flip(&mut self, name: &str, at: u64, bits: u8) -> bool {
        let Some(file) = self.names.get(name).and_then(|id| self.files.get_mut(id)) else { return false };
        let pages = Arc::make_mut(&mut file.durable);
        let Some(page) = pages.get_mut(&(at / PAGE)) else { return false };
        let mut bytes = page.to_vec();
        bytes[(at % PAGE) as usize] ^= bits;
        *page = Bytes::from(bytes);
        true
    }

    /// Durable names with the numbers of their pages that were ever written.
    #[must_use]
    pub fn written_pages(&self) -> Vec<(String, Vec<u64>)> {
        let pages = |id: &FileId| self.files.get(id).map(|f| f.durable.keys().copied().collect()).unwrap_or_default();
        self.names.iter().map(|(name, id)| (name.clone(), pages(id))).collect()
    }
}

impl FileImage {
    fn make_durable(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let pages = Arc::make_mut(&mut self.durable);
        for write in self.pending.drain(..) {
            put(pages, write.offset, &write.data);
        }
    }
}

fn apply_name(names: &mut BTreeMap<String, FileId>, op: &NameOp) {
    match op {
        NameOp::Put(name, file) => {
            names.insert(name.clone(), *file);
        }
        NameOp::Remove(name) => {
            names.remove(name);
        }
        NameOp::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}

/// Puts `data` into `pages` at byte `offset`.
pub fn put(pages: &mut Pages, offset: u64, data: &Bytes) {
    let mut done = 0_usize;
    while done < data.len() {
        let at = offset + done as u64;
        let (page, inside) = (at / PAGE, (at % PAGE) as usize);
        let len = (PAGE as usize - inside).min(data.len() - done);
        if len == PAGE as usize {
            pages.insert(page, data.slice(done..done + len));
        } else {
            let mut bytes = pages.get(&page).map_or_else(|| vec![0; PAGE as usize], |old| old.to_vec());
            bytes[inside..inside + len].copy_from_slice(&data[done..done + len]);
            pages.insert(page, Bytes::from(bytes));
        }
        done += len;
    }
}

/// Reads from `pages` at byte `offset`.
pub fn get(pages: &Pages, offset: u64, into: &mut [u8]) {
    let mut done = 0_usize;
    while done < into.len() {
        let at = offset + done as u64;
        let (page, inside) = (at / PAGE, (at % PAGE) as usize);
        let len = (PAGE as usize - inside).min(into.len() - done);
        let to = &mut into[done..done + len];
        match pages.get(&page) {
            Some(bytes) => to.copy_from_slice(&bytes[inside..inside + len]),
            None => to.fill(0),
        }
        done += len;
    }
}

fn settle_write(pages: &mut Pages, len: u64, write: &Pending, fate: Fate) {
    let sectors = write.data.len().div_ceil(SECTOR);
    let span = |n: usize| n * SECTOR..((n + 1) * SECTOR).min(write.data.len());
    let sector = |pages: &mut Pages, n: usize| put(pages, write.offset + (n * SECTOR) as u64, &write.data.slice(span(n)));
    match fate {
        Fate::Whole => put(pages, write.offset, &write.data),
        Fate::Lost => {}
        Fate::Prefix(count) => (0..sectors.min(count)).for_each(|n| sector(pages, n)),
        Fate::Suffix(count) => (count..sectors).for_each(|n| sector(pages, n)),
        Fate::Torn(seed) => {
            let mut dice = Dice::new(seed);
            (0..sectors).filter(|_| dice.chance(50)).collect::<Vec<_>>().into_iter().for_each(|n| sector(pages, n));
        }
        Fate::Garbage(seed) => {
            let mut dice = Dice::new(seed);
            for n in 0..sectors {
                match dice.below(3) {
                    0 => {}
                    1 => sector(pages, n),
                    _ => {
                        let noise: Vec<u8> = (0..SECTOR / 8).flat_map(|_| dice.word().to_le_bytes()).collect();
                        put(pages, write.offset + (n * SECTOR) as u64, &Bytes::from(noise));
                    }
                }
            }
        }
        Fate::Misdirected(offset) => {
            if offset + write.data.len() as u64 <= len {
                put(pages, offset, &write.data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{DiskEvent, DiskImage, Fate, FileId, get};

    fn disk() -> DiskImage {
        let mut disk = DiskImage::default();
        disk.apply(&DiskEvent::Create { name: "a".into(), file: FileId(0), len: 1 << 20 });
        disk.apply(&DiskEvent::SyncNames);
        disk
    }

    fn write(disk: &mut DiskImage, offset: u64, byte: u8) {
        disk.apply(&DiskEvent::Write { file: FileId(0), offset, data: Bytes::from(vec![byte; 1024]) });
    }

    fn bytes(disk: &DiskImage, offset: u64) -> [u8; 2] {
        let view = disk.view();
        let Some((_, _, pages)) = view.get("a") else { return [0xee; 2] };
        let mut sectors = [0; 1024];
        get(pages, offset, &mut sectors);
        [sectors[0], sectors[512]]
    }

    #[test]
    fn what_was_synced_survives_every_fate_and_what_was_not_meets_it() {
        let mut disk = disk();
        write(&mut disk, 512, 1);
        disk.apply(&DiskEvent::Sync { file: FileId(0) });
        write(&mut disk, 512, 2);
        assert_eq!(bytes(&disk, 512), [2, 2], "a process sees what it wrote");
        for (fate, left) in [
            (Fate::Whole, [2, 2]),
            (Fate::Lost, [1, 1]),
            (Fate::Prefix(1), [2, 1]),
            (Fate::Suffix(1), [1, 2]),
            (Fate::Misdirected(8192), [1, 1]),
        ] {
            assert_eq!(bytes(&disk.settle(&[fate], |_| true), 512), left, "{fate:?}");
        }
        assert_eq!(bytes(&disk.settle(&[Fate::Misdirected(8192)], |_| true), 8192), [2, 2]);
    }

    #[test]
    fn a_name_that_was_not_synced_may_be_missing() {
        let mut disk = disk();
        disk.apply(&DiskEvent::Rename { from: "a".into(), to: "b".into() });
        assert!(disk.view().contains_key("b"));
        assert!(disk.settle(&[], |_| false).view().contains_key("a"));
        assert!(disk.settle(&[], |_| true).view().contains_key("b"));
    }

    #[test]
    fn each_write_has_its_own_fate_whatever_its_file() {
        let mut disk = disk();
        disk.apply(&DiskEvent::Create { name: "b".into(), file: FileId(1), len: 1 << 20 });
        write(&mut disk, 0, 1);
        disk.apply(&DiskEvent::Write { file: FileId(1), offset: 0, data: Bytes::from(vec![7; 512]) });
        write(&mut disk, 0, 2);
        assert_eq!(disk.unsynced().len(), 3);
        let left = disk.settle(&[Fate::Whole, Fate::Whole, Fate::Lost], |_| true);
        assert_eq!(bytes(&left, 0), [1, 1]);
        assert_eq!(left.unsynced().len(), 0);
    }
}
