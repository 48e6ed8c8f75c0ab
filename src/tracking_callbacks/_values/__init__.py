"""Pure functions on values: conversion to what MLflow can hold, masking of secrets, valid names and URIs."""
