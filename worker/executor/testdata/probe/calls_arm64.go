package main

var archCalls []call
