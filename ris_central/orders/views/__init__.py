"""Pages of the schedule, of booking, and of devices."""

from ris_central.orders.views.booking import book, patient_choice, step
from ris_central.orders.views.day import patient_panel, schedule
from ris_central.orders.views.registry import device, device_new, devices
from ris_central.orders.views.returned import returned, returned_decide

__all__ = [
    "book",
    "device",
    "device_new",
    "devices",
    "patient_choice",
    "patient_panel",
    "returned",
    "returned_decide",
    "schedule",
    "step",
]
