//! NVIDIA cards: joules since the driver was loaded, from Volta on.

use std::sync::Arc;

use nvml_wrapper::Nvml;

use crate::meter::Counter;

/// A card's counter. The library stays loaded while there is one.
struct NvidiaCard {
    library: Arc<Nvml>,
    index: u32,
}

/// The counters of all cards that have one; none without the driver.
pub(crate) fn counters() -> Vec<Box<dyn Counter>> {
    let Ok(library) = Nvml::init().map(Arc::new) else { return Vec::new() };
    let cards = 0..library.device_count().unwrap_or(0);
    let card = |index| NvidiaCard { library: Arc::clone(&library), index };
    let counting = cards.map(card).filter(|card| card.microjoules().is_some());
    counting.map(|card| Box::new(card) as Box<dyn Counter>).collect()
}

impl Counter for NvidiaCard {
    fn name(&self) -> String {
        format!("gpu-{}", self.index)
    }

    fn microjoules(&self) -> Option<u64> {
        let card = self.library.device_by_index(self.index).ok()?;
        card.total_energy_consumption().ok().map(|millijoules| millijoules * 1000)
    }

    fn range(&self) -> u64 {
        u64::MAX
    }
}
