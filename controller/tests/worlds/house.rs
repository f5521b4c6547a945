//! Devices, and the models that are guests on them.

use hush_controller::simulate::trace::Dice;
use hush_server::residency::machine::{CommandId, Unload};

use crate::device::Device;
use crate::guest::{Guest, Reply, Scene};
use crate::scenario::Scenario;

#[derive(Debug)]
pub struct House {
    pub devices: Vec<Device>,
    pub guests: Vec<Guest>,
    dice: Dice,
}

/// A command as a server gets it.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    Unload(Unload),
    Load,
}

impl House {
    pub fn new(scenario: &Scenario, dice: &mut Dice) -> Self {
        let guests = scenario.guests.iter().map(|spec| Guest::new(spec.clone(), dice)).collect();
        Self { devices: scenario.devices.clone(), guests, dice: Dice(dice.next()) }
    }

    /// Gives what commands have come to, with the place of the guest.
    pub fn advance(&mut self, now: u64) -> Vec<(CommandId, Reply)> {
        let mut replies = Vec::new();
        for device in &mut self.devices {
            device.advance(now, &mut self.dice);
        }
        for guest in &mut self.guests {
            let device = &mut self.devices[guest.spec.device];
            guest.advance(&mut Scene { now, device, dice: &mut self.dice, replies: &mut replies });
        }
        replies
    }

    pub fn order(&mut self, now: u64, guest: usize, command: CommandId, order: Order) -> Vec<(CommandId, Reply)> {
        let mut replies = Vec::new();
        let guest = &mut self.guests[guest];
        let device = &mut self.devices[guest.spec.device];
        let mut scene = Scene { now, device, dice: &mut self.dice, replies: &mut replies };
        match order {
            Order::Unload(unload) => guest.unload(command, unload, &mut scene),
            Order::Load => guest.load(command, &mut scene),
        }
        replies
    }

    /// Nobody asks, the others leave, nothing goes wrong any more.
    pub fn calm(&mut self) {
        self.devices.iter_mut().for_each(Device::calm);
        self.guests.iter_mut().for_each(Guest::calm);
    }
}
