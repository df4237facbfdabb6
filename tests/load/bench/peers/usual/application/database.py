"""The tables as SQLAlchemy models, and the connections to them."""

import os
from datetime import datetime
from decimal import Decimal

from sqlalchemy import DateTime, ForeignKey, Numeric, String, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

POOL_SIZE = 32
"""Connections of one process: one for each message that it works on at the same time."""

engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=POOL_SIZE, max_overflow=0)
new_session = async_sessionmaker(engine, expire_on_commit=False)
new_statement = async_sessionmaker(engine.execution_options(isolation_level="AUTOCOMMIT"))
"""A session in which each statement is a transaction, without the round trips of BEGIN and COMMIT."""


class Base(DeclarativeBase):
    """The base of the models."""


class Order(Base):
    """An order."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(String, primary_key=True)
    user_id: Mapped[str]
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    currency: Mapped[str]
    status: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    items: Mapped[list["OrderItem"]] = relationship(lazy="raise")


class OrderItem(Base):
    """One line of an order."""

    __tablename__ = "order_items"

    order_id: Mapped[str] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    sku: Mapped[str] = mapped_column(primary_key=True)
    qty: Mapped[int]
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))


class Payment(Base):
    """What the provider decided about an order."""

    __tablename__ = "payments"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    decided_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class Reservation(Base):
    """The stock that an order holds."""

    __tablename__ = "reservations"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    lines: Mapped[dict[str, int]] = mapped_column(JSONB)
    decided_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
