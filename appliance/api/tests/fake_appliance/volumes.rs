//! Volumes and their bytes.

use lamina_api::appliance::{VolumeData, Volumes};
use lamina_api::data::{Extent, ExtentList};
use lamina_api::page::{Page, Paged};
use lamina_api::problem::{Problem, ProblemKind};
use lamina_api::volume::{ChangeVolume, CreateVolume, Volume, VolumeCounters, VolumeFilter, VolumeList, VolumeState};
use lamina_contract::VolumeName;

use super::{BLOCK, FakeAppliance, problem, taken};

impl Volumes for FakeAppliance {
    fn volumes(&self, filter: &VolumeFilter, page: &Page) -> Result<VolumeList, Problem> {
        let state = self.state.lock();
        let volumes = state.volumes.values().filter(|volume| filter.holds(volume)).cloned();
        let Paged { entries, next } = page.cut(volumes, |volume| volume.name.clone());
        Ok(VolumeList { volumes: entries, next })
    }

    fn volume(&self, name: &VolumeName) -> Result<Volume, Problem> {
        assert!(name.as_str() != "panic", "a bug");
        self.edit(name.as_str(), |_| Ok(()))
    }

    fn create_volume(&self, request: &CreateVolume) -> Result<Volume, Problem> {
        if request.name.starts_with("late") {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        let mut state = self.state.lock();
        if state.volumes.contains_key(&request.name) {
            return Err(taken("volume", &request.name));
        }
        let volume = Volume {
            name: request.name.clone(),
            id: format!("{:016x}", self.number()),
            size_bytes: request.size_bytes,
            block_size: request.block_size.unwrap_or(4096),
            sco_size: request.sco_size.unwrap_or(4 << 20),
            read_only: request.read_only,
            created: self.time(),
            state: VolumeState::Attached,
            socket: Some(format!("/run/lamina/vhost/{}.sock", request.name)),
            connected: request.name.starts_with("busy"),
            epoch: 1,
            generation: 0,
            labels: request.labels.clone(),
            template: false,
            parent: None,
            clones: 0,
            snapshots: 0,
            settings: request.settings,
            cdp_start: (request.settings.cdp_seconds > 0).then(|| self.time()),
            counters: VolumeCounters::default(),
        };
        state.volumes.insert(request.name.clone(), volume.clone());
        Ok(volume)
    }

    fn change_volume(&self, name: &VolumeName, change: &ChangeVolume) -> Result<Volume, Problem> {
        let now = self.time();
        self.edit(name.as_str(), |volume| {
            if let Some(size) = change.size_bytes {
                if !size.is_multiple_of(volume.block_size) {
                    return Err(problem(ProblemKind::InvalidRequest, "size_bytes is a multiple of the block size"));
                }
                if size < volume.size_bytes && (!change.force || volume.connected) {
                    return Err(problem(ProblemKind::Conflict, "that would cut data off").advise("force it, without a guest"));
                }
                volume.size_bytes = size;
            }
            if let Some(labels) = &change.labels {
                volume.labels = labels.clone();
            }
            if let Some(settings) = change.settings {
                volume.settings = settings.applied_to(volume.settings);
                volume.cdp_start = (volume.settings.cdp_seconds > 0).then_some(now);
            }
            if let Some(template) = change.template {
                volume.template = template;
                volume.read_only = template;
            }
            Ok(())
        })
    }

    fn delete_volume(&self, name: &VolumeName, snapshots: bool) -> Result<(), Problem> {
        let volume = self.idle(name)?;
        if name.as_str().starts_with("late") {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        if volume.clones > 0 {
            return Err(
                problem(ProblemKind::Conflict, format!("{} clones need volume '{name}'", volume.clones)).advise("flatten them")
            );
        }
        if volume.snapshots > 0 && !snapshots {
            return Err(problem(ProblemKind::Conflict, format!("volume '{name}' has snapshots")).advise("say that they go too"));
        }
        let mut state = self.state.lock();
        state.volumes.remove(name.as_str());
        state.snapshots.retain(|(of, _), _| of != name.as_str());
        state.blocks.retain(|(of, _), _| of != name.as_str());
        Ok(())
    }

    fn attach(&self, name: &VolumeName) -> Result<Volume, Problem> {
        if name.as_str().starts_with("late") {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        self.edit(name.as_str(), |volume| {
            volume.state = VolumeState::Attached;
            volume.socket = Some(format!("/run/lamina/vhost/{name}.sock"));
            Ok(())
        })
    }

    fn detach(&self, name: &VolumeName, force: bool) -> Result<Volume, Problem> {
        self.edit(name.as_str(), |volume| {
            if volume.connected && !force {
                return Err(problem(ProblemKind::Conflict, format!("a guest uses volume '{name}'")).advise("shut the guest down"));
            }
            volume.state = VolumeState::Detached;
            volume.socket = None;
            volume.connected = false;
            Ok(())
        })
    }
}

impl VolumeData for FakeAppliance {
    fn extents(&self, volume: &VolumeName, from: u64, limit: usize) -> Result<ExtentList, Problem> {
        self.idle(volume)?;
        let state = self.state.lock();
        let mut extents: Vec<Extent> = Vec::new();
        for (_, block) in state.blocks.keys().filter(|(of, block)| of == volume.as_str() && block * BLOCK >= from) {
            match extents.last_mut() {
                Some(last) if last.offset + last.length == block * BLOCK => last.length += BLOCK,
                _ => extents.push(Extent { offset: block * BLOCK, length: BLOCK }),
            }
        }
        let next_from = extents.get(limit).map(|next| next.offset);
        extents.truncate(limit);
        Ok(ExtentList { extents, next_from })
    }

    fn read_data(&self, volume: &VolumeName, offset: u64, length: u64) -> Result<Vec<u8>, Problem> {
        let end = offset.checked_add(length).filter(|end| self.idle(volume).is_ok_and(|volume| *end <= volume.size_bytes));
        self.idle(volume)?;
        let end = end.ok_or_else(|| problem(ProblemKind::InvalidRequest, "outside the volume"))?;
        let state = self.state.lock();
        let byte = |at: u64| {
            let block = state.blocks.get(&(volume.to_string(), at / BLOCK));
            block.and_then(|block| block.get((at % BLOCK) as usize)).copied().unwrap_or(0)
        };
        Ok((offset..end).map(byte).collect())
    }

    fn write_data(&self, volume: &VolumeName, offset: u64, bytes: &[u8]) -> Result<(), Problem> {
        let found = self.idle(volume)?;
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > found.size_bytes) {
            return Err(problem(ProblemKind::InvalidRequest, "outside the volume"));
        }
        if found.read_only {
            return Err(problem(ProblemKind::Conflict, format!("volume '{volume}' refuses writes")));
        }
        let mut state = self.state.lock();
        for (at, byte) in (offset..).zip(bytes) {
            let block = state.blocks.entry((volume.to_string(), at / BLOCK)).or_insert_with(|| vec![0; BLOCK as usize]);
            block[(at % BLOCK) as usize] = *byte;
        }
        Ok(())
    }
}
