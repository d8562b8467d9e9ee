"""Lets twistd find the gateway. Every twistd on the machine imports this: nothing else belongs here."""

from twisted.application.service import ServiceMaker

gateway = ServiceMaker("Mayros Gateway", "mayros.tap", "One port for chat clients, one agent run behind it.", "mayros")
